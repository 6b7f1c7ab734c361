"""Executes one run, from its first pending episode to its final state."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import PERMANENT_KINDS, ServiceError
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, RunRecord
from services.evaluator.runs.episode_runner import EpisodeRunner
from services.evaluator.runs.failure_limits import FailureLimits
from services.evaluator.runs.generator_port import AnsweringGenerator, PassageLookup
from services.evaluator.runs.provenance_guard import ProvenanceChanged, ProvenanceGuard
from services.evaluator.runs.run_driver import RunDriver
from services.evaluator.runs.run_options import RunOptions
from services.evaluator.runs.run_progress import RunProgress
from services.evaluator.store.run_store import RunStore

logger = logging.getLogger(__name__)


class RunExecutor:
    """Executes runs; each ends finished, incomplete or failed.

    A run that is cancelled stays "running" in the store, so that the next start continues it.
    """

    def __init__(
        self,
        store: RunStore,
        generator: AnsweringGenerator,
        passages: PassageLookup | None,
        metrics: EvaluatorMetrics,
        options: RunOptions,
    ) -> None:
        self._store = store
        self._generator = generator
        self._passages = passages
        self._metrics = metrics
        self._options = options

    async def execute(self, progress: RunProgress, questions: Sequence[Question], stored: Sequence[Episode]) -> None:
        """Run every episode that ``stored`` does not settle, and record how the run ended.

        Args:
            stored: rows of an earlier part of the run that are kept: answers, answers without a verdict, and questions
                that are refused or not applicable.
        """
        self._metrics.runs_in_progress.inc()
        record = progress.record
        run_id = record.spec.run_id
        state, reason, error = EvaluationState.FINISHED, EndReason.NONE, ""
        guard = ProvenanceGuard(allow_changes=record.spec.allow_changes, index_generation=record.index_generation)
        try:
            guard.restore(stored)
            if record.spec.controls and self._passages is not None:
                await self._record_missing_gold(run_id, questions, self._passages)
            lost = await self._drive(progress, questions, stored, guard)
            if lost:
                state, reason = EvaluationState.INCOMPLETE, EndReason.OUTAGE
                error = f"{lost} answers or verdicts were lost to failures; ask for the run again to get them"
        except asyncio.CancelledError:  # the service is stopping; the next start continues the run
            state = EvaluationState.RUNNING
            raise
        except ServiceError as failure:
            state, reason, error = EvaluationState.FAILED, _classify_failure(failure), str(failure)
            logger.warning("run %s failed: %s", run_id, failure)
        except Exception:
            state, reason = EvaluationState.FAILED, EndReason.OUTAGE
            error = "internal error; the evaluator's log has the details"
            logger.exception("run %s failed unexpectedly", run_id)
        finally:
            self._metrics.runs_in_progress.dec()
            if state is not EvaluationState.RUNNING:
                ended = replace(record, state=state, reason=reason, error=error, provenance=guard.values())
                await self._close_run(progress, ended)

    async def _record_missing_gold(self, run_id: str, questions: Sequence[Question], passages: PassageLookup) -> None:
        """Find out which gold passages the corpus lacks: questions that need them cannot be answered from it."""
        gold = list(dict.fromkeys(name for question in questions for name in question.gold_passage_ids))
        if gold:
            missing = await passages.find_missing(gold)
            self._store.set_missing_gold(run_id, len(gold), sorted(missing))

    async def _drive(
        self,
        progress: RunProgress,
        questions: Sequence[Question],
        stored: Sequence[Episode],
        guard: ProvenanceGuard,
    ) -> int:
        """Go over the questions until nothing is lost, at most ``passes`` times; return how many are still lost."""
        spec, options = progress.record.spec, self._options
        runner = EpisodeRunner(self._generator, options.retries, keep_trajectories=spec.keep_trajectories)
        runner.remember_verdicts(stored)
        limits = FailureLimits(
            {column.name: len(questions) for column in progress.record.columns},
            max_consecutive_failures=options.max_consecutive_failures,
            max_refused_fraction=options.max_refused_fraction,
        )
        # Unjudged rows are counted when their verdicts come.
        limits.restore(row for row in stored if not row.is_unjudged)
        unjudged = {(row.label, row.question_id): row for row in stored if row.is_unjudged}
        done = {(row.label, row.question_id) for row in stored} - set(unjudged)

        async def append(episode: Episode, passages: Sequence[Passage]) -> None:
            await options.retries.run(lambda: asyncio.wrap_future(self._store.append(spec.run_id, episode, passages)))
            pair = (episode.label, episode.question_id)
            # A lost row stays pending for the next pass, which only asks for the verdict if there is an answer.
            if not episode.is_lost:
                done.add(pair)
            if episode.is_unjudged:
                unjudged[pair] = episode
            progress.add(episode)
            self._metrics.observe(episode)

        concurrency = min(spec.concurrency or options.default_concurrency, options.max_concurrency)
        driver = RunDriver(runner, append, guard, limits, concurrency=concurrency)
        lost = 0
        for _ in range(options.passes):
            lost = len(await driver.drive(questions, progress.record.columns, done, unjudged))
            if not lost:
                break
        limits.check_end()
        return lost

    async def _close_run(self, progress: RunProgress, ended: RunRecord) -> None:
        record = ended
        with contextlib.suppress(ServiceError):  # a full disk must not hide why the run ended
            record = await asyncio.to_thread(self._store.close_run, ended)
        self._metrics.runs.labels(state=ended.state.value).inc()
        progress.finish(record)


def _classify_failure(failure: ServiceError) -> EndReason:
    if isinstance(failure, ProvenanceChanged):
        return EndReason.CHANGED
    return EndReason.MISCONFIGURED if failure.kind in PERMANENT_KINDS else EndReason.OUTAGE
