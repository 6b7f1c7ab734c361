"""Executes runs: workers answer the pending pairs of question and method, until a run has its final state.

The workers of a run are tasks of one event loop that share one iterator; taking a pair does not await, so no pair is
taken twice. The first worker that raises ends the others (``TaskGroup``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import Field, PositiveInt

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import OUTAGE_KINDS, PERMANENT_KINDS, InvalidRequest, ServiceError
from searchrl.platform.retry import RetryPolicy
from searchrl.platform.settings import Section
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, MethodSpec, RunRecord
from services.evaluator.runs.episode_runner import AnsweringGenerator, EpisodeResult, EpisodeRunner
from services.evaluator.runs.failure_limits import FailureLimits
from services.evaluator.runs.provenance_guard import ProvenanceChanged, ProvenanceGuard
from services.evaluator.runs.run_progress import RunProgress
from services.evaluator.store.run_store import RunStore

logger = logging.getLogger(__name__)

EPISODE_RETRIES = RetryPolicy(first_seconds=0.5, max_seconds=15.0, kinds=OUTAGE_KINDS)
"""For every kind of outage. Pauses of up to 0.5, 1, 2 and 4 seconds, plus the server's Retry-After, outlast a quick
restart of the generator; the next pass over the questions covers longer outages.
"""

LOOKUP_BATCH = 500
"""Ids per request; the retriever refuses more than 4,096, and a smaller batch keeps its answers small."""

Pair = tuple[str, str]
"""(label, question id)"""


class RunSettings(Section):
    """How runs are executed."""

    default_concurrency: PositiveInt = Field(default=8, description="Episodes at once if a run does not set it.")
    max_concurrency: PositiveInt = Field(default=64, description="Most episodes at once, whatever a run requests.")
    # With the pauses of ``EPISODE_RETRIES``, five attempts span 3.75 seconds or more; the next pass covers longer
    # outages.
    attempts: PositiveInt = Field(default=5, description="Attempts of one call that fails in an outage.")
    # The second pass comes after all other questions, when a short outage is over; a longer one leaves the run
    # incomplete.
    passes: PositiveInt = Field(
        default=2, description="Passes over the questions of a run; after the first, only over those lost to an outage."
    )
    # A dozen rounds of eight episodes at once, each tried five times: the service is down, not one of its answers.
    max_consecutive_failures: PositiveInt = Field(
        default=100, description="Consecutive episodes lost to an outage that end a run; it can be continued."
    )
    # With more refusals, the mean would be that of another set of questions.
    max_refused_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Fraction of a method's questions that may be refused permanently."
    )


class RemotePassages:
    """The retriever service, as far as the controls need it."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    async def find_missing(self, ids: Sequence[str]) -> set[str]:
        """Those of ``ids`` that the corpus does not contain."""
        wanted = list(dict.fromkeys(ids))
        held: set[str] = set()
        for start in range(0, len(wanted), LOOKUP_BATCH):
            passages = await self._client.get_passages(wanted[start : start + LOOKUP_BATCH])
            held.update(passage.id for passage in passages)
        return set(wanted) - held

    async def index_generation(self) -> str:
        """The generation that answers searches; taken from a search, because listing indexes needs an admin key."""
        _, generation = await self._client.search_with_generation(["index generation"], 1, {})
        return generation


@dataclass(slots=True)
class _RunInProgress:
    """One run while it is executed; ``done`` pairs need nothing more, ``unjudged`` answers only need a verdict.

    ``guard`` checks every row before it is stored, so that a run never holds rows of two models or indexes. ``limits``
    checks it afterwards, so that the row that ends a run is stored, too.
    """

    progress: RunProgress
    questions: Sequence[Question]
    runner: EpisodeRunner
    guard: ProvenanceGuard
    limits: FailureLimits
    done: set[Pair]
    unjudged: dict[Pair, Episode]

    def iterate_pending(self) -> Iterator[tuple[Question, MethodSpec]]:
        """Question by question, so that an unfinished run has all methods on the same questions."""
        for question in self.questions:
            for method in self.progress.record.columns:
                if (method.name, question.id) not in self.done:
                    yield question, method


class RunExecutor:
    """Executes runs; each ends finished, incomplete or failed.

    A run that is cancelled stays "running" in the store, so that the next start continues it.
    """

    def __init__(
        self,
        store: RunStore,
        generator: AnsweringGenerator,
        passages: RemotePassages | None,
        metrics: EvaluatorMetrics,
        settings: RunSettings,
        *,
        retries: RetryPolicy = EPISODE_RETRIES,
    ) -> None:
        self._store = store
        self._generator = generator
        self._passages = passages
        self._metrics = metrics
        self._settings = settings
        self._retries = replace(retries, attempts=settings.attempts)

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
            lost = await self._run_passes(self._prepare(progress, questions, stored, guard))
            if lost:
                state, reason = EvaluationState.INCOMPLETE, EndReason.OUTAGE
                error = f"{lost} answers or verdicts were lost to failures; create the run again to get them"
        except asyncio.CancelledError:  # the service is stopping; the next start continues the run
            state = EvaluationState.RUNNING
            raise
        except ServiceError as failure:
            state, reason, error = EvaluationState.FAILED, _classify_failure(failure), str(failure)
            logger.warning("run %s failed: %s", run_id, failure)
        # Reason OUTAGE: the run may be continued by the same request, after a fix of the program at the latest.
        except Exception:
            state, reason = EvaluationState.FAILED, EndReason.OUTAGE
            error = "internal error; the evaluator's log has the details"
            logger.exception("run %s failed unexpectedly", run_id)
        finally:
            self._metrics.runs_in_progress.dec()
            # In ``finally``, so that nothing but a stop of the service leaves a run "running" that no task executes.
            if state is not EvaluationState.RUNNING:
                ended = replace(record, state=state, reason=reason, error=error, provenance=guard.values())
                await self._close_run(progress, ended)

    async def _record_missing_gold(self, run_id: str, questions: Sequence[Question], passages: RemotePassages) -> None:
        """Find out which gold passages the corpus lacks: questions that need them cannot be answered from it."""
        gold = list(dict.fromkeys(name for question in questions for name in question.gold_passage_ids))
        if gold:
            missing = await passages.find_missing(gold)
            await asyncio.to_thread(self._store.set_missing_gold, run_id, len(gold), sorted(missing))

    def _prepare(
        self, progress: RunProgress, questions: Sequence[Question], stored: Sequence[Episode], guard: ProvenanceGuard
    ) -> _RunInProgress:
        """The run with its episode runner and its limits, which count the ``stored`` rows."""
        record, settings = progress.record, self._settings
        runner = EpisodeRunner(self._generator, self._retries, keep_trajectories=record.spec.keep_trajectories)
        runner.remember_verdicts(stored)
        limits = FailureLimits(
            {column.name: len(questions) for column in record.columns},
            max_consecutive_failures=settings.max_consecutive_failures,
            max_refused_fraction=settings.max_refused_fraction,
        )
        # Unjudged rows are counted when their verdicts come.
        limits.restore(row for row in stored if not row.is_unjudged)
        unjudged = {(row.label, row.question_id): row for row in stored if row.is_unjudged}
        done = {(row.label, row.question_id) for row in stored} - set(unjudged)
        return _RunInProgress(progress, questions, runner, guard, limits, done, unjudged)

    async def _run_passes(self, run: _RunInProgress) -> int:
        """Go over the questions until nothing is lost, at most ``passes`` times; return how many are still lost."""
        lost = 0
        # Each pass is complete before the next one: a question lost at the start gets the longest time to recover.
        for _ in range(self._settings.passes):
            lost = len(await self._run_pending(run))
            if not lost:
                break
        # Only now: a column whose first answers were lost may have had its answers in the last pass.
        run.limits.check_end()
        return lost

    async def _run_pending(self, run: _RunInProgress) -> set[Pair]:
        """Run every pending pair, and return those that were lost to an outage.

        Raises:
            Unavailable: too many consecutive failures, or results cannot be stored.
            Misconfigured: too many questions are refused.
            ProvenanceChanged: an answer comes from another model, index, prompt or judge than those before it.
            Unauthenticated, Forbidden: our key is not accepted.
        """
        requested = run.progress.record.spec.concurrency or self._settings.default_concurrency
        # One generator for all workers. ``done`` grows meanwhile, which is harmless: each pair is looked up once, when
        # its turn comes.
        pairs = run.iterate_pending()
        lost: set[Pair] = set()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(requested, self._settings.max_concurrency)):
                    group.create_task(self._work(run, pairs, lost))
        except ExceptionGroup as failures:
            # The first one ended the other workers, so it is the reason; callers know ServiceError and no groups.
            raise failures.exceptions[0] from failures
        return lost

    async def _work(self, run: _RunInProgress, pairs: Iterator[tuple[Question, MethodSpec]], lost: set[Pair]) -> None:
        """Take pairs until none is left; the next one only after the row of the last one is on disk."""
        for question, method in pairs:
            pair = (method.name, question.id)
            result = await run.runner.run(question, method, run.unjudged.get(pair))
            run.guard.check(result.episode)
            episode = await self._store_result(run, result)
            if episode.is_lost:
                lost.add(pair)
            run.limits.check(episode)

    async def _store_result(self, run: _RunInProgress, result: EpisodeResult) -> Episode:
        """Store the row; one that the store cannot represent is recorded as refused instead."""
        episode = result.episode
        try:
            await self._append(run, episode, result.passages)
        except InvalidRequest as error:
            # Without the values that could not be stored, such as a lone surrogate in the answer.
            blank = Episode(label=episode.label, question_id=episode.question_id)
            episode = replace(blank, failure=error.kind.value, error=str(error))
            await self._append(run, episode, ())
        return episode

    async def _append(self, run: _RunInProgress, episode: Episode, passages: Sequence[Passage]) -> None:
        """Return once the row is on disk and counted."""
        run_id = run.progress.record.spec.run_id
        # A failed commit may be repeated, because the row replaces itself. A worker that is cancelled here cannot
        # cancel the write: the row is committed, and the next start of the run finds it.
        await self._retries.run(lambda: asyncio.wrap_future(self._store.append(run_id, episode, passages)))
        pair = (episode.label, episode.question_id)
        # A lost row stays pending for the next pass, which only asks for the verdict if there is an answer.
        if not episode.is_lost:
            run.done.add(pair)
        if episode.is_unjudged:
            run.unjudged[pair] = episode
        run.progress.add(episode)
        self._metrics.observe(episode)

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
