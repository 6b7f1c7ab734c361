"""Keeps recent rankings in memory; the least recently used ones are evicted first."""

from collections import OrderedDict

from services.retriever.indexes.ranked_rows import RankedRows

# Measured with sys.getsizeof on CPython 3.11: key, tuple, two lists and the entry; then a row number, a score and their
# two references.
_BYTES_PER_RANKING = 400
_BYTES_PER_RESULT = 76


class MemoryCache:
    """Up to ``max_entries`` rankings in up to ``max_bytes``; 0 for either disables it. Used in the event loop only."""

    def __init__(self, max_entries: int, max_bytes: int = 1 << 28) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, RankedRows] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> RankedRows | None:
        """The ranking under ``key``, now the most recently used."""
        ranking = self._entries.get(key)
        if ranking is not None:
            self._entries.move_to_end(key)
        return ranking

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, ranking: RankedRows) -> int:
        """Store a ranking; return how many were evicted for it."""
        if (old := self._entries.get(key)) is not None:
            self.bytes -= _size_of(old)
        self._entries[key] = ranking
        self._entries.move_to_end(key)
        self.bytes += _size_of(ranking)
        evicted = 0
        while self._entries and (len(self._entries) > self._max_entries or self.bytes > self._max_bytes):
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _size_of(oldest)
            evicted += 1
        return evicted


def _size_of(ranking: RankedRows) -> int:
    return _BYTES_PER_RANKING + _BYTES_PER_RESULT * len(ranking.rows)
