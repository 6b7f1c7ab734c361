"""Provides a row as every shape reads it: keys in any spelling, values unchanged."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

MAX_SHOWN = 80
"""Characters of a value in an error message, so that a message stays one readable line."""
_SEPARATORS = re.compile(r"[\s_-]+")


class BadRow(ValueError):
    """The row cannot be used; the message states the reason, and the reader adds file and place."""


class Row:
    """A row whose keys are compared without case, ``_``, ``-`` and spaces.

    "QuestionId", "question_id" and "question-id" are one key, and ``_id`` is ``id``. A null or NaN is missing.
    """

    __slots__ = ("_given", "_values")

    def __init__(self, values: Mapping[Any, object]) -> None:
        self._given = values
        # Missing values are dropped here, so that "in" and first() need not look at values.
        self._values: dict[str, object] = {}
        for key, value in values.items():
            if is_missing(value):
                continue
            name = canonical_key(str(key))
            # An exact spelling wins over one that only reduces to it: "id" over "_id".
            if name == key or name not in self._values:
                self._values[name] = value

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys as the file spells them."""
        return tuple(map(str, self._given))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> object:
        """Return the value of a key in its canonical spelling; None if it is missing."""
        return self._values.get(key)

    def first(self, keys: Iterable[str]) -> tuple[str, object]:
        """Return the first of ``keys`` that has a value, and the value; ("", None) if none has."""
        return next(((key, self._values[key]) for key in keys if key in self._values), ("", None))

    def part(self, key: str) -> "Row":
        """Return a nested object as a row; an empty row if there is none."""
        value = self.get(key)
        return Row(value) if isinstance(value, Mapping) else Row({})


class Record(NamedTuple):
    """One row and its place in the file: "line 3", "entry 3" or "row 3", counted from 1."""

    place: str
    row: Row


@lru_cache(maxsize=4096)  # a file has few keys and many rows
def canonical_key(key: str) -> str:
    """Return the spelling by which keys are compared."""
    return _SEPARATORS.sub("", key).lower()


def is_missing(value: object) -> bool:
    """Return whether the value is null, or NaN, which tools without a null write in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def describe(value: object) -> str:
    """Describe a value for an error message, in at most ``MAX_SHOWN`` characters."""
    match value:
        case Mapping():
            shown = "an object with " + (", ".join(map(repr, list(value)[:5])) or "no key")
        case list() | tuple():
            shown = f"a list of {len(value)}"
        case str():
            shown = repr(value)
        case None:
            shown = "null"
        case bool():
            shown = str(value).lower()
        case _:
            shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1] + "…"
