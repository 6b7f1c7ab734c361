"""Breaks protocol tags, document headers and control tokens in texts that come from outside.

Passages, titles, questions and answers are data and must never act as markup. Three mechanisms ensure this:

1. here, tags and "Doc n (Title:" headers are broken visibly before a text enters a prompt;
2. ``GuardedText`` marks what is untrusted, and ``ModelTokenizer`` never encodes a control token inside it;
3. for engines that tokenize by themselves, ``break_control_tokens`` breaks the spellings of the common chat formats.

A text that contains none of these stays unchanged, character by character.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

PROTOCOL_TAGS = (
    "think", "thinking", "thought", "thoughts", "reasoning", "query", "search", "information", "important_info",
    "search_complete", "select", "answer", "question", "document", "documents", "golden_answers", "response",
    "tool_call", "tool_response",
)  # fmt: skip
"""Tags with a meaning in some prompt of this project; all are broken, whichever protocol is in use."""

_INVISIBLE_CLASS = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
_INVISIBLE = f"[{_INVISIBLE_CLASS}]*"
"""Invisible characters, which some tokenizers' normalizers remove: a tag with one inside would become a tag again."""

# Full-width brackets and colons count as well, because normalizers with NFKC (SentencePiece's default) turn them into
# ASCII before the model sees them.
_HEADER = re.compile(rf"(Doc{_INVISIBLE}\s*\d+\s*)[(（](?=\s*Title\s*[:：])", re.IGNORECASE)
# The characters at which str.splitlines splits, so that no reader of lines sees a title end early.
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_TAG_IN_TEMPLATE = re.compile(r"</?([A-Za-z][\w-]*)>")

_CONTROL_TOKENS = re.compile(
    r"""
      <[|｜][^\s<>]{1,80}>              # <|im_end|>, <|eot_id|>, <｜User｜>, <|turn>
    | <[^\s<>|｜]{1,80}[|｜]>           # <turn|>
    | \[[|｜][^\s\[\]]{1,80}[|｜]\]      # [|assistant|]
    | <</?[A-Za-z_]{2,24}>>             # <<SYS>>
    | \[/?[A-Z][A-Z_]{1,32}\]           # [INST], [/INST], [TOOL_CALLS], [SYSTEM_PROMPT]
    | \[g?MASK\]
    | </?(?:s|bos|eos|eod|eot|eom|eoh|eoa|pad|unk|cls|sep|mask|sop|eop|im_start|im_end|role|AI|用户)>
    | <(?:start|end|begin|beginning)_[a-z_]{1,40}>    # <start_of_turn>, <start_function_call>
    | <_(?:user|bot|system|start|end)>
    | <[A-Z]{2,16}_TOKEN>               # <BOS_TOKEN>
    | <(?:unused|reserved_|extra_id_|reserved_special_token_|SPECIAL_|TOKENS_UNUSED_|ctrl)\d{1,5}>
    | \[unused\d{1,5}\]
    | <(?:seed|hy|image|audio|video)[:_][^\s<>]{1,32}>
    | <(?:fim|jupyter|repo|file)_[a-z_]{1,24}> | ◁/?[a-z]{1,24}▷
    | </?(?:[a-z]{1,16}:)?(?:think|tools?|tool_calls?|tool_responses?)>
    | </?(?:[a-z]{1,16}:)?(?:function|parameter|audio|image|video)(?:=[^\s<>]{0,64})?>
    | \]~!?b?\[?\] | ~\]\[ | \]<\]
    """,
    re.VERBOSE,
)
"""Spellings of control tokens in the chat formats of published models; used only if the tokenizer is not known here.

The bounds on lengths ({1,80} and the like) keep long text that happens to stand between such brackets from being read
as one token."""


def tags_in(template: str) -> frozenset[str]:
    """Return the names of the tags that a prompt template uses, in lower case."""
    return frozenset(name.lower() for name in _TAG_IN_TEMPLATE.findall(template))


def defuse_structure(text: str, more_tags: Iterable[str] = ()) -> str:
    """Break tags and document headers: ``<query>`` becomes ``‹query>``, ``Doc 2 (Title:`` becomes ``Doc 2 [Title:``.

    The bracket is replaced rather than followed by a blank, because tag parsers tolerate blanks and some tokenizers
    drop them.

    Args:
        more_tags: tag names beside ``PROTOCOL_TAGS``.
    """
    text = _tag_pattern(frozenset(more_tags)).sub("‹", text)
    return _HEADER.sub(r"\1[", text)


def defuse_title(title: str, more_tags: Iterable[str] = (), *, quotes: bool = True) -> str:
    """Defuse as ``defuse_structure`` does and put the title on one line.

    With ``quotes``, quotation marks become apostrophes, because a quotation mark ends a title.
    """
    title = _LINE_BREAKS.sub(" ", defuse_structure(title, more_tags))
    return title.replace('"', "'") if quotes else title


def break_control_tokens(text: str, exact: Iterable[str] = ()) -> str:
    """Break whatever a chat format could read as a control token: ``<|im_end|>`` becomes ``< |im_end|>``.

    Args:
        exact: further tokens, e.g. all that the model's own tokenizer has.
    """
    patterns = [_CONTROL_TOKENS, *([_exact_pattern(frozenset(exact))] if exact else [])]
    for pattern in patterns:
        # A broken token can be part of another one (<<|a|>|b|>), so repeat until nothing matches.
        while (broken := pattern.sub(_with_blank, text)) != text:
            text = broken
    return text


def defuse_text(text: str, control_tokens: Iterable[str] = ()) -> str:
    """Break tags, headers and control tokens: for texts of a conversation that another server tokenizes."""
    return break_control_tokens(defuse_structure(text), control_tokens)


def _with_blank(match: re.Match[str]) -> str:
    token = match[0]
    return f"{token[0]} {token[1:]}" if len(token) > 1 else " "


# One entry per set of tags, that is per prompt template; a process uses a handful.
@lru_cache(maxsize=64)
def _tag_pattern(more: frozenset[str]) -> re.Pattern[str]:
    names = sorted({*PROTOCOL_TAGS, *more}, key=len, reverse=True)
    name = f"(?:{'|'.join(_INVISIBLE.join(map(re.escape, each)) for each in names)})"
    hidden = _INVISIBLE
    # exact: the tag's name follows the bracket at once. No closing bracket is needed, because "<query", "<query\n>" and
    # "<query x=1>" look like tags to a model.
    exact = rf"{hidden}[/／]?{hidden}{name}(?![\w-])"
    blank = rf"[\s{_INVISIBLE_CLASS}]{{0,8}}"  # bounded: a text of blanks must not take quadratic time
    # loose: blanks may surround the name, and then the closing bracket is needed: "x < search costs" is prose.
    loose = rf"{blank}[/／]?{blank}{name}{blank}[>＞﹥]"
    return re.compile(rf"[<＜﹤](?={exact}|{loose})", re.IGNORECASE)


@lru_cache(maxsize=16)
def _exact_pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    # Longest first: an alternation takes its first branch that matches, also if a longer token begins with it.
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
