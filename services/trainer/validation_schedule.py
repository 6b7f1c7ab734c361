"""Starts the validations of a run, records each, and keeps the best version.

The training loop asks for a validation before it trains the next step and waits for it before it publishes; see
``services.trainer.validation``. Everything here runs in the loop's event loop.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from searchrl.statistics.paired_difference import PairedDifference, paired_difference
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from services.trainer.metrics import TrainerMetrics
from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import RunState
from services.trainer.validation.history import (
    PREFIX,
    QUESTION_SET,
    ValidationHistory,
    describe_validation,
    is_validation,
)
from services.trainer.validation.scored_questions import ScoredQuestions
from services.trainer.validation.settings import ValidationSettings
from services.trainer.validation.validator import Validator

logger = logging.getLogger(__name__)


class ValidationSchedule:
    """The validations of one run. Without a ``validator`` none is ever due."""

    def __init__(
        self,
        settings: ValidationSettings,
        validator: Validator | None,
        store: CheckpointStore,
        writer: CheckpointWriter,
        run_logger: RunLogger,
        metrics: TrainerMetrics,
    ) -> None:
        self._settings = settings
        self._validator = validator
        self._store = store
        self._writer = writer
        self._run_logger = run_logger
        self._metrics = metrics
        self._history = ValidationHistory(settings, validator.question_set if validator else "")
        self._running: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a validation was started and not finished."""
        return self._running is not None

    def open(self, identity: Mapping[str, str], lines: Iterable[StepLine], state: RunState) -> None:
        """Continue after the validations among these lines."""
        if self._validator is None:
            return
        self._validator.open(identity)
        self.restore(lines, state)

    def restore(self, lines: Iterable[StepLine], state: RunState) -> None:
        """Continue after the validations among these lines, and forget all others."""
        if self._validator is None:
            return
        self._history = ValidationHistory(self._settings, self._validator.question_set)
        state.validation = None
        found = [line for line in lines if is_validation(line)]
        self._history.restore(found)
        if any(line[QUESTION_SET] != self._validator.question_set for line in found):
            logger.warning(
                "earlier validations were on other questions or baselines; they are not compared with the next ones"
            )
        compared = [line for line in found if line[QUESTION_SET] == self._validator.question_set]
        if compared:
            state.validation = compared[-1]
            self._metrics.record_validation(compared[-1])
        self._keep_best()

    def close(self, *, discard: bool) -> None:
        """End what keeps unscored trajectories; ``discard`` removes them."""
        if self._validator is not None:
            self._validator.close(discard=discard)

    def is_due(self, step: int, *, last: bool = False) -> bool:
        """Whether the version that ``step`` trained is to be validated and is not yet."""
        if self._validator is None or step in self._history:
            return False
        first = self._history.first_step is None
        return first or last or (bool(self._settings.every) and step % self._settings.every == 0)

    def ends_run(self, step: int) -> bool:
        """Whether the run ends early after ``step``."""
        return self._validator is not None and self._history.ends_run(step)

    def start(self, state: RunState, *, last: bool = False) -> None:
        """Start to validate the version that is served, if that is due and was not started."""
        if self._running is None and self.is_due(state.step, last=last):
            self._running = asyncio.create_task(self._validate(state))

    async def wait(self) -> None:
        """Wait for the validation that was started, if any.

        Raises:
            Exception: what the validation raised.
        """
        if self._running is not None:
            await asyncio.shield(self._running)  # ``cancel`` ends it, not the end of one wait
            self._running = None

    async def cancel(self) -> None:
        """Abandon the validation that was started; its rows are kept."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def _validate(self, state: RunState) -> None:
        assert self._validator is not None
        started, step = time.monotonic(), state.step
        logger.info("validating the version of step %d", step)
        scored = await self._validator.run(step, state.version, state.fingerprint)
        summary = scored.summarize()
        self._history.add(step, summary[self._settings.metric])
        # In a thread: with ten thousand questions and rewards of many values, the test takes seconds.
        compared = await asyncio.to_thread(self._compare, step, scored)
        line: dict[str, float | int | str | bool | None] = {
            "step": step,
            **{f"{PREFIX}{name}": round(value, 6) for name, value in summary.items()},
            **compared,
            **self._describe_best(),
            f"{PREFIX}seconds": round(time.monotonic() - started, 4),
            QUESTION_SET: self._validator.question_set,
            "policy_version": state.version,
            "fingerprint": state.fingerprint,
            "time": round(time.time(), 3),
        }
        # First the line: if the process ends in between, the next one finds the best version from the lines.
        await self._run_logger.record_validation(line, step)
        await self._writer.finish()  # of this version, which may be the best
        self._keep_best()
        state.validation = line
        logger.info("%s", describe_validation(line, self._settings.metric))

    def _compare(self, step: int, scored: ScoredQuestions) -> dict[str, float | int]:
        """Compare with the first validated version on the same questions; nothing for that version itself."""
        assert self._validator is not None
        first = self._history.first_step
        if first is None or first == step:
            return {}
        metric = self._settings.metric
        found = paired_difference(scored.values(metric), self._validator.values_of(first, metric))
        return _difference_fields(first, found) if found.count else {}

    def _describe_best(self) -> dict[str, float | int]:
        best = self._history.best
        assert best is not None
        return {
            f"{PREFIX}best_step": best[0],
            f"{PREFIX}best": round(best[1], 6),
            f"{PREFIX}without_improvement": self._history.without_improvement,
        }

    def _keep_best(self) -> None:
        best = self._history.best
        self._store.name_best(best[0] if best is not None else None)


def _difference_fields(first: int, found: PairedDifference) -> dict[str, float | int]:
    return {
        f"{PREFIX}start_step": first,
        f"{PREFIX}difference": round(found.difference, 6),
        f"{PREFIX}difference_low": round(found.low, 6),
        f"{PREFIX}difference_high": round(found.high, 6),
        f"{PREFIX}wins": found.wins,
        f"{PREFIX}losses": found.losses,
        f"{PREFIX}p_value": round(found.p_value, 6),
    }
