"""Where are the tags in a sampled text, and which numbers stand in it?"""

import re

_NUMBER = re.compile(r"[0-9]+")
_TOO_LONG = 9


def tag_content(text: str, tag: str) -> str | None:
    """Return what stands in the first ``<tag>...</tag>``; None if there is no closed one."""
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


def whole_numbers(text: str) -> list[int]:
    """Return every run of digits as a number; absurdly long ones become 0, which is never a document's number."""
    return [int(digits) if len(digits) <= _TOO_LONG else 0 for digits in _NUMBER.findall(text)]
