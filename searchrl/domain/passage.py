"""Defines passages and search results, and the normal form of a passage's id."""

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
