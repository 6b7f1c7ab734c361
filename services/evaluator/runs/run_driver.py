"""Drives an entire run: a fixed number of workers take (question, method) pairs until none is left.

The workers are tasks of one event loop that share one iterator; taking a pair does not await, so no pair is taken
twice. The first worker that raises ends the others (``TaskGroup``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import MethodSpec
from services.evaluator.runs.episode_runner import EpisodeResult, EpisodeRunner
from services.evaluator.runs.failure_limits import FailureLimits
from services.evaluator.runs.provenance_guard import ProvenanceGuard

Pair = tuple[str, str]
"""(label, question id)"""
Append = Callable[[Episode, Sequence[Passage]], Awaitable[None]]


class RunDriver:
    """Drives one run. ``append`` returns once a row is on disk; only then does its worker take the next pair.

    ``guard`` checks every row before it is stored, so that a run never holds rows of two models or indexes. ``limits``
    checks it afterwards, so that the row that ends a run is stored, too.
    """

    def __init__(
        self,
        runner: EpisodeRunner,
        append: Append,
        guard: ProvenanceGuard,
        limits: FailureLimits,
        *,
        concurrency: int,
    ) -> None:
        self._runner = runner
        self._append = append
        self._guard = guard
        self._limits = limits
        self._concurrency = concurrency

    async def drive(
        self,
        questions: Sequence[Question],
        methods: Sequence[MethodSpec],
        done: set[Pair],
        unjudged: Mapping[Pair, Episode],
    ) -> set[Pair]:
        """Run every pair that is not in ``done``, and return those that were lost to an outage.

        Args:
            unjudged: answers that only need a verdict.

        Raises:
            Unavailable: too many failures in a row, or results cannot be stored.
            Misconfigured: too many questions are refused.
            ProvenanceChanged: an answer was made with another model, index, prompt or judge than those before it.
            Unauthenticated, Forbidden: our key is not accepted.
        """
        pairs = self._iterate_pending(questions, methods, done)
        lost: set[Pair] = set()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work(pairs, unjudged, lost))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        return lost

    @staticmethod
    def _iterate_pending(
        questions: Sequence[Question], methods: Sequence[MethodSpec], done: set[Pair]
    ) -> Iterator[tuple[Question, MethodSpec]]:
        """Question by question, so that an unfinished run has all methods on the same questions."""
        for question in questions:
            for method in methods:
                if (method.name, question.id) not in done:
                    yield question, method

    async def _work(
        self, pairs: Iterator[tuple[Question, MethodSpec]], unjudged: Mapping[Pair, Episode], lost: set[Pair]
    ) -> None:
        for question, method in pairs:
            pair = (method.name, question.id)
            result = await self._runner.run(question, method, unjudged.get(pair))
            self._guard.check(result.episode)
            episode = await self._store(result)
            if episode.is_lost:
                lost.add(pair)
            self._limits.check(episode)

    async def _store(self, result: EpisodeResult) -> Episode:
        """Store the row; one that the store cannot represent is recorded as refused instead."""
        episode = result.episode
        try:
            await self._append(episode, result.passages)
        except InvalidRequest as error:
            blank = Episode(label=episode.label, question_id=episode.question_id)
            episode = replace(blank, failure=error.kind.value, error=str(error))
            await self._append(episode, ())
        return episode
