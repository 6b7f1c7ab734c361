"""A rollout engine without a model: what it samples is a function of the prompt, the seed and the served weights."""

import asyncio
import hashlib
from collections.abc import Sequence

from searchrl.agent.types import Generation, Sampling, Tokenizer
from searchrl.errors import Conflict
from services.trainer.engines.base import EngineCounters, EngineHealth
from services.trainer.engines.sampling import StopDetector
from services.trainer.learner.model_folder import fingerprint_tensors
from services.trainer.learner.reports import PublishedWeights


class ScriptedRolloutEngine:
    """Samples ids below ``vocabulary`` one per tick of the event loop; implements ``RolloutEngine``."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos_ids: frozenset[int] = frozenset()) -> None:
        self._stops = StopDetector(tokenizer, vocabulary)
        self._vocabulary = vocabulary
        self._eos_ids = eos_ids
        self._served = EngineHealth(0, "")
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def open_session(self, rollout_id: str) -> None:
        pass

    def close_session(self, rollout_id: str) -> None:
        pass

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        self._running += 1
        self._idle.clear()
        try:
            return await self._sample(list(prompt_ids), sampling)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def load_weights(self, weights: PublishedWeights) -> None:
        if fingerprint_tensors(dict(weights.tensors)) != weights.fingerprint:
            raise Conflict("the weights have another fingerprint")
        await self._idle.wait()
        self._served = EngineHealth(weights.version, weights.fingerprint)

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        return [self._draw(ids[:position], 0)[1] for position in range(start, len(ids))]

    async def health(self) -> EngineHealth:
        return EngineHealth(self._served.version, self._served.fingerprint, True, self._running)

    def counters(self) -> EngineCounters:
        return EngineCounters()

    async def _sample(self, prompt: list[int], sampling: Sampling) -> Generation:
        ids: list[int] = []
        logprobs: list[float] = []
        version, reason = self._served.version, "length"
        while len(ids) < sampling.max_tokens:
            await asyncio.sleep(0)
            token, logprob = self._draw([*prompt, *ids], 0 if sampling.temperature == 0 else sampling.seed or 0)
            ids.append(token)
            logprobs.append(logprob)
            if token in self._eos_ids or self._stops.completes(ids, sampling.stop):
                reason = "stop"
                break
        return Generation(tuple(ids), tuple(logprobs), (version,) * len(ids), reason)

    def _draw(self, ids: Sequence[int], seed: int) -> tuple[int, float]:
        digest = hashlib.sha256(f"{list(ids)}/{seed}/{self._served.fingerprint}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % self._vocabulary, -1.0 - digest[5] / 256
