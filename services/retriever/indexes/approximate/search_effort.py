"""Says how much of an approximate index a search looks at."""

from dataclasses import dataclass
from math import ceil, sqrt

# Below these, recall of real sentence vectors falls under 0.9 (docs/performance.md).
MIN_NPROBE = 16
DEFAULT_EF_SEARCH = 128


@dataclass(frozen=True)
class SearchEffort:
    """More is slower and finds more. None leaves it to the index's own size.

    Attributes:
        nprobe: lists of an IVF index to scan.
        ef_search: candidates that a walk over an HNSW graph keeps.
    """

    nprobe: int | None = None
    ef_search: int | None = None

    def nprobe_of(self, lists: int) -> int:
        """Lists to scan of an index with this many: the square root of their number, and 16 at least."""
        return min(self.nprobe or max(MIN_NPROBE, ceil(sqrt(lists))), lists)

    @property
    def ef(self) -> int:
        return self.ef_search or DEFAULT_EF_SEARCH

    def or_else(self, other: "SearchEffort") -> "SearchEffort":
        """This effort, with what it leaves open taken from ``other``."""
        return SearchEffort(self.nprobe or other.nprobe, self.ef_search or other.ef_search)


DEFAULT_EFFORT = SearchEffort()
