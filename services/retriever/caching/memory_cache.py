"""Which rankings were asked for lately? Least recently used ones leave first."""

from collections import OrderedDict

from services.retriever.indexes.ranked_rows import RankedRows


class MemoryCache:
    """Up to ``max_entries`` rankings; 0 switches it off. Used from the event loop only."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[str, RankedRows] = OrderedDict()

    def get(self, key: str) -> RankedRows | None:
        """The ranking under ``key``, now the most recently used."""
        ranking = self._entries.get(key)
        if ranking is not None:
            self._entries.move_to_end(key)
        return ranking

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, ranking: RankedRows) -> int:
        """Remember a ranking; return how many had to leave for it."""
        self._entries[key] = ranking
        self._entries.move_to_end(key)
        leaving = max(0, len(self._entries) - self._max_entries)
        for _ in range(leaving):
            self._entries.popitem(last=False)
        return leaving
