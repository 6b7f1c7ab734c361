"""Records each training step: metrics, trajectories, Prometheus gauges, trackers, and a line of the log."""

import asyncio
import logging
import time
from collections.abc import Sequence

from searchrl.storage.durable_files import explain_disk_full
from services.trainer.algorithms.base import StepUpdate
from services.trainer.metrics import TrainerMetrics
from services.trainer.rollouts.group import Group
from services.trainer.runs.run_events import Rollback
from services.trainer.runs.run_folder import RunFolder, StepLine
from services.trainer.runs.run_state import RunState
from services.trainer.runs.step_report import StepProgress, choose_samples, split_waiting
from services.trainer.runs.step_summary import (
    CollapseDetector,
    StepTimer,
    measure_staleness,
    summarize_rollouts,
    summarize_update,
)
from services.trainer.runs.trajectory_files import write_trajectories
from services.trainer.trackers.base import RunEnd, TrackedStep
from services.trainer.trackers.tracker_thread import TrackerThread, close_trackers
from services.trainer.validation.history import PREFIX, is_validation

logger = logging.getLogger(__name__)


class RunLogger:
    """Writes ``metrics.jsonl`` and trajectories, exports the metrics, and gives each step to the trackers.

    Args:
        trackers: show the steps elsewhere, each in a thread of its own.
        samples: trajectories of a step that trackers get.
        tokenizer: SHA-256 of the tokenizer, written with the trajectories.
    """

    def __init__(
        self,
        folder: RunFolder,
        metrics: TrainerMetrics,
        *,
        trajectories_every: int,
        trackers: Sequence[TrackerThread],
        samples: int,
        config_text: str,
        tokenizer: str,
        total_steps: int,
    ) -> None:
        self.folder = folder
        self.lines: list[StepLine] = []
        self._metrics = metrics
        self._trajectories_every = trajectories_every
        self._trackers = trackers
        self._samples = samples if trackers else 0
        self._config_text = config_text
        self._tokenizer = tokenizer
        self._progress = StepProgress(total_steps)
        self._collapse = CollapseDetector()
        self._last = time.monotonic()  # end of the last step

    def open(self, step: int, resume: bool) -> None:
        """Create the files of a new run, or truncate those of a resumed run after ``step``."""
        if resume:
            self.folder.truncate_after(step)
            self.folder.write_config(self._config_text)
            self._read_lines()
        else:
            self.folder.create(self._config_text)
        for tracker in self._trackers:
            tracker.start(step)
        self._metrics.record_start(step)
        self._last = time.monotonic()

    def _read_lines(self) -> None:
        self.lines = self.folder.step_lines()
        steps = [line for line in self.lines if not is_validation(line)]
        self._collapse = CollapseDetector()
        self._collapse.restore([float(line["success"] or 0.0) for line in steps if "success" in line])

    async def record_rollback(self, rollback: Rollback) -> None:
        """Record a rollback, and remove the records of the steps that it left behind; both or neither is on disk."""
        await asyncio.to_thread(self._write_rollback, rollback)
        self._read_lines()
        self._metrics.record_rollback(rollback.to_step, rollback.lost_groups)
        self._last = time.monotonic()

    def _write_rollback(self, rollback: Rollback) -> None:
        with explain_disk_full(f"the rollback in {self.folder.path}", "free some space and resume"):
            self.folder.truncate_after(rollback.to_step, rollback.to_line())

    async def close(self, end: RunEnd) -> None:
        """Deliver what the trackers have not shown yet, for a limited time."""
        await asyncio.to_thread(close_trackers, self._trackers, end)

    def record_checkpoint(self, blocking_seconds: float, background_seconds: float) -> None:
        """Record how long a checkpoint took."""
        self._metrics.record_checkpoint(blocking_seconds, background_seconds)

    async def record(
        self,
        groups: Sequence[Group],
        update: StepUpdate,
        version: int,
        state: RunState,
        timer: StepTimer,
        replaced: int = 0,
        resting: int = 0,
    ) -> None:
        """Record one step.

        Args:
            version: the policy version that was trained.
            replaced: groups that dynamic sampling replaced to get this step's.
            resting: questions that the curriculum lets rest after it.
        """
        summary = summarize_rollouts(groups)
        state.mean_reward = summary.get("reward", 0.0)
        now = time.monotonic()
        line: dict[str, float | int | str | bool | None] = {
            "step": state.step,
            **{name: round(value, 6) for name, value in (summary | summarize_update(update.report)).items()},
            "logprob_mismatch": update.logprob_mismatch,
            "replaced_groups": replaced,
            "resting_questions": resting,
            "staleness": measure_staleness(groups, version),
            "collapse_warning": "success" in summary and self._collapse.observe(summary["success"]),
            "policy_version": state.version,
            "fingerprint": state.fingerprint,
            "seconds": round(now - self._last, 4),
            **{f"seconds_{name}": round(seconds, 4) for name, seconds in self._split(timer, groups).items()},
            "time": round(time.time(), 3),
        }
        self._last = now
        for group in groups:
            self._metrics.record_group("trained" if group.has_variance else "zero_variance")
        # Status calls read ``lines`` in this event loop, so the thread below must not change it.
        self.lines.append(line)
        self._metrics.record_step(line, timer.seconds)
        # Compression and flushing may take seconds on shared storage; in a thread, rollouts and status calls continue.
        # It is awaited, so two steps never write at once.
        await asyncio.to_thread(self._write, line, groups, state.step)
        logger.info("%s", self._progress.describe(line))
        self._show(TrackedStep(state.step, line, time.time(), choose_samples(groups, self._samples)))

    def _split(self, timer: StepTimer, groups: Sequence[Group]) -> dict[str, float]:
        """Return the phases of the step, and the parts of its longest, that of the rollouts."""
        return timer.seconds | split_waiting(timer.seconds.get("rollouts", 0.0), groups)

    async def record_validation(self, line: StepLine, step: int) -> None:
        """Record the validation of the version that ``step`` trained; its line follows that of the step."""
        self.lines.append(line)
        self._metrics.record_validation(line)
        await asyncio.to_thread(self._write_validation, line, step)
        values = {name: value for name, value in line.items() if name.startswith(PREFIX)}
        self._show(TrackedStep(step, values, time.time(), part="validation"))

    def _show(self, step: TrackedStep) -> None:
        for tracker in self._trackers:
            tracker.record(step)

    def _write_validation(self, line: StepLine, step: int) -> None:
        with explain_disk_full(f"the validation of step {step} in {self.folder.path}", "free some space and resume"):
            self.folder.append(line)

    def _write(self, line: StepLine, groups: Sequence[Group], step: int) -> None:
        with explain_disk_full(f"the records of step {step} in {self.folder.path}", "free some space and resume"):
            self._write_files(line, groups, step)

    def _write_files(self, line: StepLine, groups: Sequence[Group], step: int) -> None:
        if self._trajectories_every and step % self._trajectories_every == 0:
            write_trajectories(self.folder.trajectory_file(step), step, groups, self._tokenizer)
        self.folder.append(line)  # last: a step that has a line has its trajectories, too
