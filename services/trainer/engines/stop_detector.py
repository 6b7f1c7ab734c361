"""Detects the sampled token that completes a stop string."""

from collections.abc import Sequence
from functools import lru_cache

from searchrl.agent.types import Tokenizer


class StopDetector:
    """Finds the token that completes a stop string, and decodes text only if the token could end one.

    A token can complete a stop string only if its own text contains the string's last character; the text of
    the complete turn is decoded and searched for such tokens alone.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        # A run uses one or two sets of stop strings. Finding candidates decodes every token of the vocabulary, and the
        # requests of a server may name any strings, so few results are kept, and not without limit.
        self._candidates = lru_cache(maxsize=16)(self._find_candidates)

    def completes(self, ids: Sequence[int], stop: tuple[str, ...]) -> bool:
        """True if the last of the sampled ``ids`` completes one of the strings."""
        if not stop or not ids or ids[-1] not in self._candidates(stop):
            return False
        text = self._tokenizer.decode(ids)
        return any(string in text for string in stop)

    def _find_candidates(self, stop: tuple[str, ...]) -> frozenset[int]:
        lasts = {string[-1] for string in stop if string}
        # a character outside ASCII may be split over tokens, so that no single token's text contains it
        if not all(last.isascii() for last in lasts):
            return frozenset(range(self._vocabulary_size))
        texts = ((token, self._tokenizer.decode([token])) for token in range(self._vocabulary_size))
        return frozenset(token for token, text in texts if any(last in text for last in lasts))
