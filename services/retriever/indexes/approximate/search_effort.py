"""Defines how much of an approximate index a search examines."""

from dataclasses import dataclass
from math import ceil, sqrt

# Below these, recall of real sentence vectors falls under 0.9 (docs/performance.md).
MIN_NPROBE = 16
DEFAULT_EF_SEARCH = 128


@dataclass(frozen=True)
class SearchEffort:
    """Larger values are slower and find more. None chooses by the size of the index.

    Attributes:
        nprobe: lists of an IVF index to scan.
        ef_search: candidates kept during a search of an HNSW graph.
    """

    nprobe: int | None = None
    ef_search: int | None = None

    def nprobe_of(self, lists: int) -> int:
        """Lists to scan in an index of this many: by default the square root of their number, at least 16."""
        return min(self.nprobe or max(MIN_NPROBE, ceil(sqrt(lists))), lists)

    @property
    def ef(self) -> int:
        return self.ef_search or DEFAULT_EF_SEARCH

    def or_else(self, other: "SearchEffort") -> "SearchEffort":
        """This effort, with unset values taken from ``other``."""
        return SearchEffort(self.nprobe or other.nprobe, self.ef_search or other.ef_search)


DEFAULT_EFFORT = SearchEffort()
