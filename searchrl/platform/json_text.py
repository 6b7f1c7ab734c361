"""Refuses or replaces lone surrogates, which JSON escapes can spell but UTF-8 and protobuf cannot carry."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from searchrl.errors import InvalidRequest

# Python's json joins a complete pair of escapes to one character, so a surrogate that is left in a text is half of
# one.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def has_lone_surrogates(text: str) -> bool:
    """Whether ``text`` holds half of a surrogate pair, such as JSON's ``"\\ud83d"`` without its other half."""
    return _LONE_SURROGATE.search(text) is not None


def without_lone_surrogates(text: str) -> str:
    """Return the text with each lone surrogate replaced by U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def refuse_lone_surrogates(value: Any, place: str = "body") -> None:
    """Check every text in a value parsed from JSON, keys of objects included.

    Args:
        place: path of ``value`` in the request, for the message.

    Raises:
        InvalidRequest: a text holds a lone surrogate; the message says where.
    """
    if isinstance(value, str):
        if has_lone_surrogates(value):
            raise InvalidRequest(
                f"{without_lone_surrogates(place)}: the text holds half a character (a lone surrogate)"
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                refuse_lone_surrogates(key, place)
            refuse_lone_surrogates(item, f"{place}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for position, item in enumerate(value):
            refuse_lone_surrogates(item, f"{place}.{position}")
