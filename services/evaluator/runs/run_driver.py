"""How does a whole run get done? Bounded workers take (question, method) pairs until none is left."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import ErrorKind, Unavailable
from services.evaluator.runs.episode import Episode
from services.evaluator.runs.episode_runner import EpisodeRunner
from services.evaluator.runs.evaluation_run import MethodSpec

logger = logging.getLogger(__name__)

INFRASTRUCTURE_KINDS = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.OVERLOADED, ErrorKind.DEADLINE, ErrorKind.INTERNAL})

Append = Callable[[Episode, Sequence[Passage]], Future[None]]


class RunDriver:
    """Drives one run. ``append`` stores a row; the drive ends once every row is on disk.

    ``largest_losing_streak`` failures of infrastructure in a row end the run instead of burning through the questions:
    the run is then failed, keeps its rows, and continues when asked for again.
    """

    def __init__(
        self, runner: EpisodeRunner, append: Append, *, concurrency: int, largest_losing_streak: int = 100
    ) -> None:
        self._runner = runner
        self._append = append
        self._concurrency = concurrency
        self._largest_losing_streak = largest_losing_streak
        self._losing_streak = 0
        self._last_write: Future[None] | None = None

    async def drive(
        self, questions: Sequence[Question], methods: Sequence[MethodSpec], done: set[tuple[str, str]]
    ) -> None:
        """Run every pair that is not in ``done`` (label, question id).

        Raises:
            Unavailable: too many failures in a row, or results cannot be stored.
            Unauthenticated, Forbidden: our key is not accepted.
        """
        pairs = self._pending(questions, methods, done)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work(pairs))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        if self._last_write is not None:
            await asyncio.wrap_future(self._last_write)

    @staticmethod
    def _pending(
        questions: Sequence[Question], methods: Sequence[MethodSpec], done: set[tuple[str, str]]
    ) -> Iterator[tuple[Question, MethodSpec]]:
        """Question by question, so that an unfinished run already compares its methods on the same questions."""
        for question in questions:
            for method in methods:
                if (method.name, question.id) not in done:
                    yield question, method

    async def _work(self, pairs: Iterator[tuple[Question, MethodSpec]]) -> None:
        for question, method in pairs:
            result = await self._runner.run(question, method)
            self._last_write = self._append(result.episode, result.passages)
            self._count(result.episode)

    def _count(self, episode: Episode) -> None:
        if episode.failure not in INFRASTRUCTURE_KINDS:
            self._losing_streak = 0
            return
        self._losing_streak += 1
        if self._losing_streak >= self._largest_losing_streak:
            raise Unavailable(
                f"{self._losing_streak} episodes in a row were lost to failures, the last one: {episode.error}",
                retry_after_seconds=None,
            )
