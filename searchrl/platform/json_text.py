"""Refuses texts that cannot be sent on: JSON can spell half a character, which no encoding of text carries."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from searchrl.errors import InvalidRequest

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def has_lone_surrogates(text: str) -> bool:
    """Whether ``text`` holds half a character, as JSON spells it in ``"\\ud83d"`` without the other half."""
    return _LONE_SURROGATE.search(text) is not None


def without_lone_surrogates(text: str) -> str:
    """The text with a replacement character in the place of each."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def refuse_lone_surrogates(value: Any, place: str = "body") -> None:
    """Look through everything that was parsed from JSON, keys of objects included.

    Raises:
        InvalidRequest: a text holds one; the message says where.
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
