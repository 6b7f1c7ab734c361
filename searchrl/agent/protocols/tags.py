"""Finds tags and numbers in a sampled text."""

import re

_NUMBER = re.compile(r"[0-9]+")
_TOO_LONG = 9
"""Digits. Document numbers have one or two; int() of a policy's thousands of digits is slow and then an error."""


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
