"""Provides the cache of the judge's verdicts."""

from collections import OrderedDict

VerdictKey = tuple[str, str, tuple[str, ...], str]
"""Question, answer, golden answers, judge version."""


class VerdictCache:
    """Keeps the most recently used verdicts of the judge. Two judge versions never share an entry."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._verdicts: OrderedDict[VerdictKey, bool] = OrderedDict()

    def get(self, key: VerdictKey) -> bool | None:
        verdict = self._verdicts.get(key)
        if verdict is not None:
            self._verdicts.move_to_end(key)
        return verdict

    def put(self, key: VerdictKey, correct: bool) -> None:
        if self._capacity < 1:
            return
        self._verdicts[key] = correct
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > self._capacity:
            self._verdicts.popitem(last=False)

    def __len__(self) -> int:
        return len(self._verdicts)
