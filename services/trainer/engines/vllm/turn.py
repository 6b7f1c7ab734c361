"""Joins the parts of a turn that was interrupted by new weights and continued from the tokens it had."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from searchrl.agent.types import Generation, Sampling
from services.trainer.engines.sampling import StopDetector


class InterruptedTurn:
    """The tokens of a turn so far, and what is left to sample."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling, stops: StopDetector) -> None:
        self._prompt = tuple(prompt_ids)
        self._whole = sampling
        self._stops = stops
        self._ids: tuple[int, ...] = ()
        self._logprobs: tuple[float, ...] = ()
        self._versions: tuple[int, ...] = ()

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt of the next part."""
        return self._prompt + self._ids

    @property
    def sampling(self) -> Sampling:
        """How to sample the next part."""
        if not self._ids:
            return self._whole
        return replace(
            self._whole,
            max_tokens=self._whole.max_tokens - len(self._ids),
            seed=None if self._whole.seed is None else continued_seed(self._whole.seed, len(self._ids)),
        )

    def add(self, part: Generation) -> Generation | None:
        """Add the tokens of a part; return the complete turn, or None if it was interrupted."""
        kept = len(self._ids)
        ids = self._ids + part.ids
        reason, end = part.finish_reason, len(ids)
        if kept and self._whole.stop:
            # The server sees the text of its own part only, and misses a stop string that started in an earlier one.
            for length in range(kept + 1, len(ids) + 1):
                if self._stops.completes(ids[:length], self._whole.stop):
                    reason, end = "stop", length
                    break
        self._ids = ids[:end]
        self._logprobs = (self._logprobs + part.logprobs)[:end]
        self._versions = (self._versions + part.versions)[:end]
        if reason == "aborted" and len(self._ids) >= self._whole.max_tokens:
            reason = "length"
        return None if reason == "aborted" else Generation(self._ids, self._logprobs, self._versions, reason)


def continued_seed(seed: int, kept: int) -> int:
    """Return the seed of the part after ``kept`` tokens: with the turn's own, it would repeat their random numbers."""
    digest = hashlib.sha256(f"{seed}/{kept}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits fit a signed 64-bit integer
