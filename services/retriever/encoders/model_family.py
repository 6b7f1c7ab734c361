"""Lists the prefixes that families of embedding models were trained with, for queries and for passages."""

import re
from typing import NamedTuple


class Prefixes(NamedTuple):
    """Texts put before every query and before every passage."""

    query: str
    passage: str


_NONE = Prefixes("", "")
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_INSTRUCT = Prefixes(f"Instruct: {_WEB_SEARCH}\nQuery: ", "")
_REPRESENT = Prefixes("Represent this sentence for searching relevant passages: ", "")
_SIZE = "(?:xs|s|small|m|medium|base|l|large)"

# From the models' own cards. The first pattern found in the model's name decides, so special cases come first.
_FAMILIES: tuple[tuple[str, Prefixes], ...] = (
    (r"e5-.*instruct", _INSTRUCT),
    (r"e5-omni", _NONE),
    (rf"e5(?:-{_SIZE})?(?:-v2|-unsupervised)?", Prefixes("query: ", "passage: ")),
    (r"bge-m3", _NONE),
    (r"bge-multilingual-gemma2", Prefixes(f"<instruct>{_WEB_SEARCH}.\n<query>", "")),
    (r"bge-en-icl", Prefixes(f"<instruct>{_WEB_SEARCH}.\n<query>", "")),
    (rf"bge-{_SIZE}-zh(?:-v1\.5)?", Prefixes("为这个句子生成表示以用于检索相关文章：", "")),
    (rf"bge-{_SIZE}(?:-en)?(?:-v1\.5)?", _REPRESENT),
    (r"gte-qwen\d*(?:\.\d)?-.*instruct", _INSTRUCT),
    (rf"gte-(?:multilingual-|modernbert-)?{_SIZE}(?:-zh|-en)?(?:-v1\.5)?", _NONE),
    (r"qwen3-embedding", Prefixes(f"Instruct: {_WEB_SEARCH}\nQuery:", "")),
    (r"(?:mxbai-embed|mxbai)-large(?:-v1)?", _REPRESENT),
    (rf"snowflake-arctic-embed-{_SIZE}(?:-long)?-v2\.0", Prefixes("query: ", "")),
    (rf"snowflake-arctic-embed-{_SIZE}(?:-long|-v1\.5)?", _REPRESENT),
    (r"nomic-embed-text(?:-v1(?:\.5)?|-v2-moe)?", Prefixes("search_query: ", "search_document: ")),
    (r"(?:all|multi-qa|paraphrase|msmarco|distiluse|gtr|sentence-t5|contriever|dpr|labse)(?:-.*)?", _NONE),
    (r"minilm.*", _NONE),
)
_PATTERNS = tuple(
    (re.compile(rf"(?:^|[-_/. ])(?:multilingual-)?{pattern}(?:$|[-_/. ])"), prefixes) for pattern, prefixes in _FAMILIES
)


def find_prefixes(name: str) -> Prefixes | None:
    """The prefixes of the family that a model's name belongs to; None for a name of no known family."""
    for pattern, prefixes in _PATTERNS:
        if pattern.search(name.lower()):
            return prefixes
    return None
