"""Finds tags, numbers and JSON queries in a sampled text."""

import json
import re

# Not \d, which also matches digits of other scripts.
_NUMBER = re.compile(r"[0-9]+")
_TOO_LONG = 9
"""Digits. Document numbers have one or two; int() of a policy's thousands of digits is slow and then an error."""

MAX_QUERY_CHARACTERS = 1000
"""A longer query is cut and makes the turn not well formed. Without a bound a policy could send its complete turn,
hundreds of tokens, to the retriever as one query."""


def tag_content(text: str, tag: str) -> str | None:
    """Return the content of the first ``<tag>...</tag>``; None if there is no closed one."""
    start = text.find(f"<{tag}>")
    if start < 0:
        return None
    start += len(tag) + 2
    end = text.find(f"</{tag}>", start)
    return None if end < 0 else text[start:end]


def cut_after(text: str, closing_tag: str) -> str:
    """Return the text up to the end of the first ``closing_tag``; all of it if there is none."""
    head, found, _ = text.partition(closing_tag)
    return head + found


def find_numbers(text: str) -> list[int]:
    """Return every run of digits as a number; very long ones become 0, which is never a document's number."""
    return [int(digits) if len(digits) <= _TOO_LONG else 0 for digits in _NUMBER.findall(text)]


def read_query(content: str) -> str | None:
    """Return the query of ``{"query": "..."}``, or None if the content is anything else.

    Blanks around the key and the value are removed: tokenizers that split at words put them between tokens.
    """
    parsed = parse_json(content)
    if not isinstance(parsed, dict):
        return None
    values = [value for key, value in parsed.items() if key.strip() == "query"]
    if len(parsed) != 1 or len(values) != 1 or not isinstance(values[0], str):
        return None
    return values[0].strip() or None


def parse_json(content: str) -> object:
    """Return the parsed JSON; None for text that is not JSON, or is nested too deep for the parser."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def as_sendable(query: str) -> str:
    """Replace what cannot be encoded as UTF-8 (lone surrogates, which JSON escapes can spell) by question marks."""
    return query.encode("utf-8", "replace").decode("utf-8")


def read_any_query(content: str) -> str:
    """Return the query that s3 searches for with this content: malformed JSON is searched verbatim.

    ``{"query": "x"}`` and ``{"query": ["x", ...]}`` give x; any other type, an empty list, a missing key, a bare JSON
    string and text that is not JSON give the content unchanged. A first element that is not a string would be an error
    in every search engine, so it counts as "any other type".
    """
    parsed = parse_json(content)
    value = parsed.get("query") if isinstance(parsed, dict) else None
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else content
