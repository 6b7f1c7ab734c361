"""Runs one episode: the generator answers a question, the judge decides, and a failure is recorded as data.

An answer is judged once per run and question, however many methods give it.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question
from searchrl.errors import ErrorKind, Forbidden, NotFound, ServiceError, Unauthenticated
from searchrl.platform.caches import SingleFlight
from searchrl.platform.retry import RetryPolicy
from searchrl.platform.telemetry.tracing import span
from searchrl.rewards.retrieval_quality import gold_recall
from searchrl.wire.answer_codec import AnswerEvents
from searchrl.wire.trajectory_codec import trajectory_to_wire
from services.evaluator.records.episode import NOT_APPLICABLE, Episode
from services.evaluator.records.evaluation_run import ORACLE_DOCUMENTS, MethodSpec
from services.evaluator.scoring.measures import answer_exact_match, answer_f1

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 1000  # thousands of episodes may fail with the same long message


class NotApplicable(Exception):
    """The method does not apply to the question; the message says why. Neither a failure nor a wrong answer."""


class AnsweringGenerator(Protocol):
    """The generator service. Every call may raise ``searchrl.errors.ServiceError``; none invents an answer.

    ``answer`` may also raise ``NotApplicable``.
    """

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer: ...

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict: ...

    async def list_methods(self) -> list[str]: ...


class RemoteGenerator:
    """``AnsweringGenerator`` over the generator service."""

    def __init__(self, client: GeneratorClient) -> None:
        self._client = client

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer:
        """Follow one answer to its end.

        Raises:
            NotApplicable: the oracle, for a question whose gold passages are unknown, or not in the corpus.
            ServiceError: the call failed, or the stream ended before its final event.
        """
        if method.method != ORACLE_DOCUMENTS:
            return await self._answer(question, method, with_trajectory)
        if not question.gold_passage_ids:
            raise NotApplicable("the question names no gold passages")
        try:
            return await self._answer(question, method, with_trajectory)
        # The generator answers NotFound if a gold passage is not in the index; for other methods it would be a failure.
        except NotFound as error:
            raise NotApplicable(str(error)) from error

    async def _answer(self, question: Question, method: MethodSpec, with_trajectory: bool) -> Answer:
        events = AnswerEvents()
        async for event in self._client.answer(
            question,
            method.method,
            top_k=method.top_k,
            max_searches=method.max_searches,
            temperature=method.temperature,
            seed=method.seed,
            with_trajectory=with_trajectory,
        ):
            events.add(event)
        return events.answer()

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        return await self._client.judge(question, answer, golden_answers, choices)

    async def list_methods(self) -> list[str]:
        return await self._client.list_methods()


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """The row, and the passages that it refers to."""

    episode: Episode
    passages: tuple[Passage, ...] = ()


class EpisodeRunner:
    """Runs and scores single episodes. One instance per run: it owns the run's verdicts."""

    def __init__(self, generator: AnsweringGenerator, retries: RetryPolicy, *, keep_trajectories: bool = False) -> None:
        self._generator = generator
        self._retries = retries
        self._verdicts = RunVerdicts(generator)
        self._keep_trajectories = keep_trajectories

    def remember_verdicts(self, episodes: Iterable[Episode]) -> None:
        """Take over the verdicts of an earlier part of the run, so that an equal answer gets the same one."""
        for row in episodes:
            if row.verdict is not None:
                self._verdicts.remember(row.question_id, row.answer.text, row.verdict)

    async def run(self, question: Question, method: MethodSpec, unjudged: Episode | None = None) -> EpisodeResult:
        """Answer, judge and score; with ``unjudged``, an answer of an earlier part of the run, only judge it.

        Raises:
            Unauthenticated, Forbidden: our key is not accepted, so every other episode would fail alike.
        """
        with span("episode", {"searchrl.method": method.name}) as episode_span:
            result = EpisodeResult(unjudged) if unjudged is not None else await self._answer(question, method)
            if not result.episode.failure or result.episode.is_unjudged:
                result = replace(result, episode=await self._judge(question, result.episode))
            if result.episode.failure not in ("", NOT_APPLICABLE):
                episode_span.fail(result.episode.failure)
            return result

    async def _answer(self, question: Question, method: MethodSpec) -> EpisodeResult:
        blank = Episode(label=method.name, question_id=question.id)
        try:
            answer = await self._retries.run(
                lambda: self._generator.answer(question, method, with_trajectory=self._keep_trajectories)
            )
        except NotApplicable as reason:
            return EpisodeResult(replace(blank, failure=NOT_APPLICABLE, error=str(reason)))
        except Exception as error:  # noqa: BLE001 - one unexpected error must not end the run
            return EpisodeResult(_record_failure(blank, error))
        return EpisodeResult(_score_answer(blank, question, answer), tuple(answer.passages.values()))

    async def _judge(self, question: Question, episode: Episode) -> Episode:
        """Add the verdict; a judge that fails leaves the answer as it is, to be judged later."""
        # Nothing to judge by: the row is answered, and ``correct`` stays None.
        if not question.golden_answers:
            return replace(episode, failure="", error="", is_unjudged=False)
        try:
            verdict = await self._retries.run(lambda: self._verdicts.judge(question, episode.answer.text))
        except Exception as error:  # noqa: BLE001 - one unexpected error must not end the run
            return replace(_record_failure(episode, error), is_unjudged=True)
        # An earlier attempt may have left its failure in the row.
        return replace(episode, failure="", error="", is_unjudged=False, verdict=verdict)


class RunVerdicts:
    """Calls the generator's judge and keeps the verdicts of one run; failed calls are not kept.

    Methods often agree on an answer, so a run of m methods needs far fewer than m calls per question, and equal answers
    never get different verdicts.
    """

    def __init__(self, generator: AnsweringGenerator) -> None:
        self._generator = generator
        self._calls: SingleFlight[tuple[str, str], Verdict] = SingleFlight(keep_results=True)

    def remember(self, question_id: str, answer: str, verdict: Verdict) -> None:
        """Keep a verdict of an earlier part of the run."""
        self._calls.keep((question_id, answer), verdict)

    async def judge(self, question: Question, answer: str) -> Verdict:
        """The verdict on ``answer``. Only the episode that calls the judge gets its tokens, so that they count once.

        Raises:
            searchrl.errors.ServiceError: the judge could not be called; a failure never becomes a wrong verdict.
        """
        is_caller = False

        async def call() -> Verdict:
            nonlocal is_caller
            is_caller = True
            return await self._generator.judge(
                question.generator_text, answer, question.golden_answers, question.choices
            )

        verdict = await self._calls.run((question.id, answer), call)
        return verdict if is_caller else _without_tokens(verdict)


def _record_failure(episode: Episode, error: Exception) -> Episode:
    """The row of a failure.

    Raises:
        Unauthenticated, Forbidden: our key is not accepted.
    """
    # Not a row: with a wrong key every question would be refused, and would have to be repeated.
    if isinstance(error, Unauthenticated | Forbidden):
        raise error
    if isinstance(error, ServiceError):
        return replace(episode, failure=error.kind.value, error=str(error)[:MAX_ERROR_CHARACTERS])
    logger.error("episode %s of %s failed unexpectedly", episode.question_id, episode.label, exc_info=error)
    # Only the class: the text of an unexpected error may quote anything, and rows are shown to every reader of a
    # report.
    return replace(episode, failure=ErrorKind.INTERNAL.value, error=type(error).__name__)


def _score_answer(blank: Episode, question: Question, answer: Answer) -> Episode:
    """The row of an answer, with everything except the verdict."""
    golden = question.golden_answers
    trajectory = answer.trajectory
    return replace(
        blank,
        # Methods find largely the same passages; the store keeps each once per run.
        answer=replace(answer, passages={}, trajectory=None),
        exact_match=answer_exact_match(answer.text, golden, question.choices) if golden else None,
        f1=answer_f1(answer.text, golden, question.choices) if golden else None,
        gold_recall=gold_recall(answer.documents, question.gold_passage_ids),
        trajectory=b"" if trajectory is None else trajectory_to_wire(trajectory).SerializeToString(),
    )


def _without_tokens(verdict: Verdict) -> Verdict:
    """The verdict without its tokens, which are already counted."""
    return replace(verdict, prompt_tokens=0, completion_tokens=0)
