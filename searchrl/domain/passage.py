"""Defines a passage and a search result, and the normal forms of a passage's id and metadata."""

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field


def normalize_passage_id(id: str) -> str:
    """Return the id as indexes, look-ups and gold ids hold it: composed Unicode, so ids that look equal are equal."""
    return unicodedata.normalize("NFC", id)


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval. ``metadata`` holds flat strings that searches can filter on."""

    id: str
    title: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_contents(cls, id: str, contents: str, metadata: Mapping[str, str] | None = None) -> "Passage":
        """Read Search-R1's layout: the first line is the title (in double quotes), the rest the text."""
        title, _, text = contents.partition("\n")
        title = title.strip()
        # One pair alone is removed: further quotation marks belong to the title.
        if len(title) >= 2 and title[0] == title[-1] == '"':
            title = title[1:-1]
        return cls(id, title, text, dict(metadata or {}))

    @property
    def contents(self) -> str:
        """Search-R1's layout: the quoted title, a newline, the text."""
        return f'"{self.title}"\n{self.text}'


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A passage found for a query. Ranks start at 1; a larger score is better."""

    passage: Passage
    score: float
    rank: int


def metadata_text(value: object) -> str | None:
    """Return the text of a JSON value; None for a missing one (null, NaN).

    | value | text |
    |---|---|
    | text | itself |
    | true, false | "true", "false" |
    | 5, 5.0 | "5" |
    | 2.5 | "2.5" |
    | list, object | compact JSON |
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value
    # Before the numbers, because bool is a subclass of int.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number_text(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def number_text(value: int | float) -> str:
    """Return a number as a person writes it: 1969 and 1969.0 are both "1969"."""
    # Above 2**53 a float cannot represent every integer, so its digits would claim a precision it does not have.
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
