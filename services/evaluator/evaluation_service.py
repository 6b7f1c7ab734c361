"""Starts, continues, watches and reports evaluation runs.

Everything runs in the event loop, one task per run. Calls of the store that read or wait for the disk, and rendering,
run in worker threads (``asyncio.to_thread``).
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from searchrl.datasets.question_file import QuestionSet, read_questions
from searchrl.domain.question import Question
from searchrl.errors import Conflict, Forbidden, InvalidRequest
from searchrl.platform.owner_thread import FailureWatch, run_rounds
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import (
    EndReason,
    EvaluationState,
    RunRecord,
    RunSpec,
    add_controls,
    check_run_id,
)
from services.evaluator.reports.report_writer import render_run
from services.evaluator.runs.episode_runner import AnsweringGenerator
from services.evaluator.runs.run_executor import RemotePassages, RunExecutor
from services.evaluator.runs.run_progress import RunProgress, RunResults, summarize_stored
from services.evaluator.store.run_store import RunStore, stamp_created

logger = logging.getLogger(__name__)


PROBE_SECONDS = 5.0
"""Between attempts to write to a failing store: a disk with space again makes the evaluator ready within seconds."""
WATCH_SECONDS = 0.5
"""Shortest time between two messages of a watch; a run may record many episodes per second."""


class EvaluationService:
    """Starts, continues, watches and reports runs; both transports and the commands call it.

    ``_live`` holds the progress of the runs that this process executes. The results of other runs come from the store;
    they need bootstrap intervals, so ``_ended`` keeps them until the run continues.
    """

    def __init__(
        self,
        store: RunStore,
        generator: AnsweringGenerator,
        passages: RemotePassages | None,
        executor: RunExecutor,
        metrics: EvaluatorMetrics,
        *,
        questions_dir: Path | None = None,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        """Build a service without runs.

        Args:
            questions_dir: only question files under it may be named; None: none at all.
        """
        self._store = store
        self._generator = generator
        self._passages = passages
        self._metrics = metrics
        self._executor = executor
        self._questions_dir = questions_dir
        self._watch_seconds = watch_seconds
        # Both are changed in the event loop only. A task stays after its run has ended, for ``wait_for_run``; its run
        # leaves ``_live``, so that it may be continued.
        self._live: dict[str, RunProgress] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._create_lock = asyncio.Lock()  # two requests for one id must not both find that the run does not exist
        self._stopping = False
        self._ended: dict[str, RunResults] = {}
        self._probe_task: asyncio.Task[None] | None = None

    # ---- life

    async def start(self) -> None:
        """Continue every run that was in progress when the process ended, and start probing the store."""
        watch = FailureWatch("result store's probe")
        self._probe_task = asyncio.create_task(run_rounds(self._probe_store, PROBE_SECONDS, watch))
        for record in await asyncio.to_thread(self._store.runs):
            if record.state is EvaluationState.RUNNING:
                logger.info("continuing run %s", record.spec.run_id)
                await self._launch(record)

    def begin_stop(self) -> None:
        """End watches and pause runs; they stay "running" in the store and continue at the next start."""
        # First: watches that ``notify`` wakes below look at it. Called at the start of draining and again by ``stop``,
        # because a request that was in flight may have started a run in between.
        self._stopping = True
        if self._probe_task is not None:
            self._probe_task.cancel()
        for task in self._tasks.values():
            task.cancel()
        for progress in self._live.values():
            progress.notify()

    async def stop(self) -> None:
        """Wait for paused runs and release the store."""
        self.begin_stop()
        # A cancelled task queues no more rows once it has ended; closing the store commits those that are queued.
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.to_thread(self._store.close)

    # ---- runs

    async def create_run(self, spec: RunSpec, *, retry_failures: bool = False) -> RunResults:
        """Start a run; if it exists, return it, and continue it if it is incomplete or failed.

        Questions lost to an outage are retried; refused ones only if the run was misconfigured or with
        ``retry_failures``, which also continues a finished run.

        Raises:
            Conflict: the run of that id has other settings, or its question file has changed.
            InvalidRequest, NotFound, Forbidden: the questions or methods cannot be used.
        """
        # One lock for all ids: creating a run reads a file and calls the generator once, which is rare and short.
        async with self._create_lock:
            record = await asyncio.to_thread(self._store.find_run, spec.run_id)
            if record is None:
                record = await self._create(spec)
                await self._launch(record)
            else:
                _check_settings(record, spec)
                if self._should_continue(record, retry_failures):
                    await self._check_questions(record)
                    retry_refused = retry_failures or record.reason is EndReason.MISCONFIGURED
                    record = await asyncio.to_thread(self._store.reopen_run, record, spec)
                    await self._launch(record, retry_refused=retry_refused)
        return await self.get_run(spec.run_id)

    async def get_run(self, run_id: str) -> RunResults:
        """The run and its results so far.

        Raises:
            NotFound: there is no such run.
        """
        while (progress := self._live.get(run_id)) is None:
            if run_id in self._ended:
                return self._ended[run_id]
            task = self._tasks.get(run_id)
            results = await asyncio.to_thread(self._summarize_stored, run_id)
            # Another task: the run has continued meanwhile, perhaps to its end, and these results are out of date.
            if self._tasks.get(run_id) is task:
                self._ended[run_id] = results
        return progress.results()

    async def list_runs(self) -> list[RunRecord]:
        """Every run, newest first."""
        return await asyncio.to_thread(self._store.runs)

    async def watch_run(self, run_id: str) -> AsyncIterator[RunResults]:
        """The run now and after changes, until it ends or this process stops."""
        while not self._stopping and (progress := self._live.get(run_id)) is not None:
            revision = progress.revision  # read before the view, so that no later change is missed
            yield progress.results()
            # The pause comes first: changes meanwhile are noticed by the revision, and many of them become one message.
            await asyncio.sleep(self._watch_seconds)
            await progress.wait_for_change(revision)
        yield await self.get_run(run_id)

    async def wait_for_run(self, run_id: str) -> RunResults:
        """The run once it has ended."""
        task = self._tasks.get(run_id)
        if task is not None:
            # A caller that stops waiting must not cancel the run.
            await asyncio.shield(task)
        return await self.get_run(run_id)

    async def report(self, run_id: str, format: str) -> bytes:
        """The report as "html" (one self-contained page) or "json".

        Raises:
            NotFound: there is no such run.
            InvalidRequest: another format.
        """
        if format not in ("html", "json"):
            raise InvalidRequest(f"a report is html or json, not {format!r}")
        # Outside the timer: a report that does not exist takes no time to render.
        await asyncio.to_thread(self._store.run, run_id)
        with self._metrics.report_seconds.labels(format=format).time():
            return await asyncio.to_thread(render_run, self._store, run_id, format)

    # ---- inside

    async def _probe_store(self) -> None:
        """Try to write while the store is failing, so that a disk with space again makes the evaluator ready."""
        if self._store.is_failing:
            await asyncio.to_thread(self._store.probe)

    def _summarize_stored(self, run_id: str) -> RunResults:
        return summarize_stored(self._store.run(run_id), self._store.episodes(run_id))

    def _should_continue(self, record: RunRecord, retry_failures: bool) -> bool:
        if record.spec.run_id in self._live or self._stopping:
            return False
        return record.state is not EvaluationState.FINISHED or retry_failures

    async def _create(self, spec: RunSpec) -> RunRecord:
        """Check a new run before anything is stored: its id, its question file, and the methods that are served."""
        check_run_id(spec.run_id)
        question_set = await asyncio.to_thread(self._read, spec)
        served = await self._generator.list_methods()
        unknown = sorted({method.method for method in spec.methods} - set(served))
        if unknown:
            raise InvalidRequest(
                f"the generator does not serve {', '.join(unknown)}; it serves {', '.join(sorted(served))}"
            )
        generation = await self._passages.index_generation() if self._passages else ""
        record = stamp_created(
            RunRecord(
                spec=spec,
                columns=add_controls(spec.methods, served) if spec.controls else spec.methods,
                questions_sha256=question_set.sha256,
                total_questions=len(question_set.questions),
                index_generation=generation,
            )
        )
        await asyncio.to_thread(self._store.create_run, record, question_set.questions)
        return record

    async def _check_questions(self, record: RunRecord) -> None:
        question_set = await asyncio.to_thread(self._read, record.spec)
        if question_set.sha256 != record.questions_sha256:
            run_id = record.spec.run_id
            raise Conflict(f"the question file of run {run_id!r} has changed since it was created; choose another id")

    def _read(self, spec: RunSpec) -> QuestionSet:
        """Read the question file, which must be in the evaluator's folder after links and ``..`` are resolved."""
        root = self._questions_dir
        if root is None:
            raise Forbidden("this evaluator has no folder of question files; set questions_dir")
        # An absolute path replaces ``root`` here, and is then checked like any other.
        path = (root / spec.questions).resolve()
        if not path.is_relative_to(root.resolve()):
            raise Forbidden("only question files in the evaluator's questions_dir may be named")
        return read_questions(path, limit=spec.limit, need_golden_answers=not spec.allow_unscored)

    async def _launch(self, record: RunRecord, *, retry_refused: bool = False) -> None:
        """Run in the background, in an empty context: the deadline of the caller's request must not end the run."""
        run_id = record.spec.run_id
        questions = await asyncio.to_thread(self._store.questions, run_id)
        episodes = await asyncio.to_thread(self._store.episodes, run_id)
        settled = [row for row in episodes if _is_kept(row, retry_refused)]
        progress = RunProgress(record, settled)
        # Before the task's first step: from here on no request starts the run a second time.
        self._live[run_id] = progress
        self._ended.pop(run_id, None)
        self._tasks[run_id] = asyncio.create_task(
            self._execute(progress, questions, settled), name=f"run-{run_id}", context=contextvars.Context()
        )

    async def _execute(self, progress: RunProgress, questions: Sequence[Question], settled: Sequence[Episode]) -> None:
        await self._executor.execute(progress, questions, settled)
        # Watches then read the final numbers from the store. A cancelled run does not get here: the process is ending.
        del self._live[progress.record.spec.run_id]
        progress.notify()


def _is_kept(row: Episode, retry_refused: bool) -> bool:
    """Whether a row of an earlier part of the run is kept. An answer without a verdict is, to be judged later."""
    return row.is_unjudged or not (row.is_lost or (retry_refused and row.is_refused))


def _check_settings(record: RunRecord, spec: RunSpec) -> None:
    differing = [name for name, value in spec.identity.items() if record.spec.identity[name] != value]
    if differing:
        raise Conflict(f"run {spec.run_id!r} exists with other settings ({', '.join(differing)}); choose another id")
