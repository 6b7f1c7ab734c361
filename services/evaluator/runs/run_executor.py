"""How is one run carried out, from its first pending episode to its final state?"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import ServiceError
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.runs.controls import look_up_gold
from services.evaluator.runs.episode import Episode
from services.evaluator.runs.episode_runner import EpisodeRunner
from services.evaluator.runs.evaluation_run import RunState
from services.evaluator.runs.generator_port import AnsweringGenerator, PassageLookup
from services.evaluator.runs.run_driver import RunDriver
from services.evaluator.runs.run_options import RunOptions
from services.evaluator.runs.run_progress import RunProgress
from services.evaluator.store.run_store import RunStore

logger = logging.getLogger(__name__)


class RunExecutor:
    """Carries out runs; each ends finished or failed, unless it is cancelled: then it stays "running" in the store."""

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

    async def execute(self, progress: RunProgress, questions: Sequence[Question], answered: Sequence[Episode]) -> None:
        """Run every episode that is not among ``answered``, and record how the run ended."""
        self._metrics.runs_in_progress.inc()
        record = progress.record
        run_id = record.spec.run_id
        state, error = RunState.FINISHED, ""
        try:
            if record.spec.controls and self._passages is not None:
                await look_up_gold(run_id, questions, self._passages, self._store)
            await self._driver(progress, answered).drive(
                questions, record.columns, {(episode.label, episode.question_id) for episode in answered}
            )
        except asyncio.CancelledError:
            state = RunState.RUNNING
            raise
        except ServiceError as failure:
            state, error = RunState.FAILED, str(failure)
            logger.warning("run %s failed: %s", run_id, failure)
        except Exception:
            state, error = RunState.FAILED, "internal error; the evaluator's log has the details"
            logger.exception("run %s failed unexpectedly", run_id)
        finally:
            self._metrics.runs_in_progress.dec()
            if state is not RunState.RUNNING:
                await self._close_run(progress, state, error)

    async def _close_run(self, progress: RunProgress, state: RunState, error: str) -> None:
        run_id = progress.record.spec.run_id
        record = replace(progress.record, state=state, error=error)
        with contextlib.suppress(ServiceError):  # a full disk must not hide why the run ended
            record = await asyncio.to_thread(self._store.set_state, run_id, state, error)
        self._metrics.runs.labels(state=state.value).inc()
        progress.finish(record)

    def _driver(self, progress: RunProgress, answered: Sequence[Episode]) -> RunDriver:
        spec = progress.record.spec
        runner = EpisodeRunner(self._generator, self._options.backoff, keep_trajectories=spec.keep_trajectories)
        runner.remember_verdicts(answered)

        def append(episode: Episode, passages: Sequence[Passage]) -> Future[None]:
            stored = self._store.append(spec.run_id, episode, passages)
            progress.add(episode)
            self._metrics.observe(episode)
            return stored

        wanted = spec.concurrency or self._options.default_concurrency
        return RunDriver(
            runner,
            append,
            concurrency=min(wanted, self._options.max_concurrency),
            largest_losing_streak=self._options.largest_losing_streak,
        )
