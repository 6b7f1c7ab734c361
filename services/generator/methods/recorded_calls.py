"""Records the calls of one answer: the index generations of its searches, and the tokens of its searcher."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from searchrl.agent.types import Generation, Policy, Sampling
from searchrl.domain.passage import Passage, SearchResult


class Retriever(Protocol):
    """The part of the retriever's client that methods use; ``mode`` is empty for the index's default."""

    mode: str

    async def search_with_generation(
        self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]
    ) -> tuple[list[list[SearchResult]], str]: ...

    async def get_passages_with_generation(self, ids: Sequence[str]) -> tuple[list[Passage], str]: ...


class RecordingRetriever:
    """The retriever during one answer, as a ``searchrl.agent.types.Searcher``."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._generations: dict[str, None] = {}
        self.mode = retriever.mode

    @property
    def index_generations(self) -> tuple[str, ...]:
        """The generations that served the answer so far, in order of first use."""
        return tuple(self._generations)

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        """See ``searchrl.agent.types.Searcher``."""
        results, generation = await self._retriever.search_with_generation(queries, top_k, filters)
        self._record(generation)
        return results

    async def get_passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return passages in the order of ``ids``; unknown ids are left out."""
        passages, generation = await self._retriever.get_passages_with_generation(ids)
        self._record(generation)
        return passages

    def _record(self, generation: str) -> None:
        if generation:
            self._generations[generation] = None


class CountingPolicy:
    """A policy during one answer; each call counts its entire prompt, as a model server would charge it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        """See ``searchrl.agent.types.Policy``."""
        sampled = await self._policy.generate(prompt_ids, sampling, rollout_id)
        self.prompt_tokens += len(prompt_ids)
        self.completion_tokens += len(sampled.ids)
        return sampled
