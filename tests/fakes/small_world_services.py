"""The small world's retriever and generator inside the test's process, with delays and outages."""

import asyncio
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Choice
from searchrl.errors import ServiceError
from searchrl.rewards.span_match import contains_answer
from searchrl.small_world.reader import answer_from_passages

_WORD = re.compile(r"[a-z]+")


class SmallWorldSearcher:
    """BM25 over passages, one index per world; implements ``agent.types.Searcher``.

    ``delay`` draws the seconds that each call takes. ``failures`` are raised first, one per call; while ``down`` is set
    every call fails.
    """

    def __init__(self, passages: Sequence[Passage], delay: random.Random | None = None) -> None:
        self._by_world: dict[str, _World] = {}
        grouped: dict[str, list[Passage]] = defaultdict(list)
        for passage in passages:
            grouped[passage.metadata.get("world", "")].append(passage)
        for world, members in grouped.items():
            self._by_world[world] = _World(members)
        self._delay = delay
        self.failures: list[ServiceError] = []
        self.down: ServiceError | None = None
        self.calls = 0

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        self.calls += 1
        if self._delay is not None:
            await asyncio.sleep(self._delay.random() * 0.01)
        if self.down is not None:
            raise self.down
        if self.failures:
            raise self.failures.pop(0)
        world = self._by_world[filters.get("world", "")]
        return [world.search(query, top_k) for query in queries]


class _World:
    """BM25 with the usual parameters k1 = 1.2 and b = 0.75; ties are broken by position."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        texts = [_WORD.findall(passage.contents.lower()) for passage in passages]
        average = sum(map(len, texts)) / len(texts)
        frequency = Counter(word for words in texts for word in set(words))
        for number, words in enumerate(texts):
            for word, count in Counter(words).items():
                rarity = math.log(1 + (len(texts) - frequency[word] + 0.5) / (frequency[word] + 0.5))
                weight = rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / average))
                self._postings[word].append((number, weight))

    def search(self, query: str, top_k: int) -> list[SearchResult]:
        scores: dict[int, float] = defaultdict(float)
        for word in set(_WORD.findall(query.lower())):
            for number, weight in self._postings.get(word, ()):
                scores[number] += weight
        best = sorted(scores, key=lambda number: (-scores[number], number))[:top_k]
        return [SearchResult(self._passages[number], scores[number], rank) for rank, number in enumerate(best, start=1)]


class SmallWorldGenerator(GeneratorClient):
    """The frozen reader in place of a generator; while ``down`` is set every call fails."""

    def __init__(self, delay: random.Random | None = None) -> None:  # opens no channel
        self._delay = delay
        self.down: ServiceError | None = None
        self.answers = 0

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        self.answers += 1
        if self._delay is not None:
            await asyncio.sleep(self._delay.random() * 0.01)
        if self.down is not None:
            raise self.down
        return Answer(answer_from_passages(question, [passage.text for passage in passages]))

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        if self.down is not None:
            raise self.down
        return Verdict(contains_answer(answer, golden_answers), "span", "")

    async def list_methods(self) -> list[str]:
        if self.down is not None:
            raise self.down
        return ["rag"]
