"""What does one method make of one question, scored? Failures of infrastructure are retried, then recorded as such."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import ErrorKind, Forbidden, ServiceError, Unauthenticated
from searchrl.platform.tracing import span
from services.evaluator.runs.episode import Answered, Episode, Verdict
from services.evaluator.runs.evaluation_run import MethodSpec
from services.evaluator.runs.generator_port import AnsweringGenerator
from services.evaluator.runs.retry import Backoff
from services.evaluator.runs.verdicts import VerdictCache
from services.evaluator.scoring.answer_metrics import answer_exact_match, answer_f1, gold_recall

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """The row, and the passages that it names."""

    episode: Episode
    passages: tuple[Passage, ...] = ()


class EpisodeRunner:
    """Runs and scores single episodes. One instance per run: it owns the run's verdicts."""

    def __init__(self, generator: AnsweringGenerator, backoff: Backoff, *, keep_trajectories: bool = False) -> None:
        self._generator = generator
        self._backoff = backoff
        self._verdicts = VerdictCache(generator)
        self._keep_trajectories = keep_trajectories

    def remember_verdicts(self, episodes: Iterable[Episode]) -> None:
        """Judge an answer that an earlier part of the run has seen as it was judged then."""
        for row in episodes:
            if row.correct is not None:
                verdict = Verdict(row.correct, row.decided_by, row.judge_version)
                self._verdicts.remember(row.question_id, row.answer, verdict)

    async def run(self, question: Question, method: MethodSpec) -> EpisodeResult:
        """Answer, judge and score.

        Raises:
            Unauthenticated, Forbidden: our key is not accepted, so every other episode would fail alike.
        """
        with span("episode", {"searchrl.method": method.name}) as playing:
            result = await self._run(question, method)
            if result.episode.failure:
                playing.fail(result.episode.failure)
            return result

    async def _run(self, question: Question, method: MethodSpec) -> EpisodeResult:
        try:
            answered = await self._backoff.call(
                lambda: self._generator.answer(question, method, with_trajectory=self._keep_trajectories)
            )
            verdict = None
            if question.golden_answers:
                verdict = await self._backoff.call(lambda: self._verdicts.judge(question, answered.answer))
        except (Unauthenticated, Forbidden):
            raise
        except ServiceError as error:
            return EpisodeResult(_failed(question, method, error.kind, str(error)))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # one episode's surprise must not end the run
            logger.exception("episode %s of %s failed unexpectedly", question.id, method.name)
            return EpisodeResult(_failed(question, method, ErrorKind.INTERNAL, type(error).__name__))
        return EpisodeResult(_scored(question, method, answered, verdict), tuple(answered.passages.values()))


def _failed(question: Question, method: MethodSpec, kind: ErrorKind, message: str) -> Episode:
    return Episode(label=method.name, question_id=question.id, failure=kind.value, error=message)


def _scored(question: Question, method: MethodSpec, answered: Answered, verdict: Verdict | None) -> Episode:
    golden = question.golden_answers
    return Episode(
        label=method.name,
        question_id=question.id,
        answer=answered.answer,
        correct=verdict.correct if verdict else None,
        decided_by=verdict.decided_by if verdict else "",
        judge_version=verdict.judge_version if verdict else "",
        exact_match=answer_exact_match(answered.answer, golden, question.choices) if golden else None,
        f1=answer_f1(answered.answer, golden, question.choices) if golden else None,
        gold_recall=gold_recall(answered.documents, question.gold_passage_ids),
        documents=answered.documents,
        steps=answered.steps,
        searches=answered.searches,
        prompt_tokens=answered.prompt_tokens,
        completion_tokens=answered.completion_tokens,
        context_tokens=answered.context_tokens,
        seconds=answered.seconds,
        stop_reason=answered.stop_reason,
        policy_version=answered.policy_version,
        trajectory=answered.trajectory,
    )
