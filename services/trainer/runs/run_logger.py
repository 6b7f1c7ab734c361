"""Records each training step: metrics, trajectories, TensorBoard events and Prometheus gauges."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from searchrl.storage.durable_files import explain_disk_full
from services.trainer.algorithms.base import StepUpdate
from services.trainer.metrics import TrainerMetrics
from services.trainer.rollouts.group import Group
from services.trainer.runs.run_folder import RunFolder, StepLine
from services.trainer.runs.run_state import RunState
from services.trainer.runs.step_summary import (
    CollapseDetector,
    StepTimer,
    measure_staleness,
    summarize_rollouts,
    summarize_update,
)
from services.trainer.runs.trajectory_files import write_trajectories
from services.trainer.validation.history import PREFIX, is_validation


class RunLogger:
    """Writes ``metrics.jsonl``, trajectories and TensorBoard events, and exports the metrics."""

    def __init__(
        self,
        folder: RunFolder,
        metrics: TrainerMetrics,
        trajectories_every: int,
        tensorboard: bool,
        config_text: str,
        tokenizer: str,
    ) -> None:
        self.folder = folder
        self.lines: list[StepLine] = []
        self._metrics = metrics
        self._trajectories_every = trajectories_every
        self._tensorboard = TensorboardLog(folder.tensorboard) if tensorboard else None
        self._config_text = config_text
        self._tokenizer = tokenizer  # its SHA-256, written with the trajectories
        self._collapse = CollapseDetector()
        self._first_step = 1  # that this process trains
        self._last = time.monotonic()  # end of the last step

    def open(self, step: int, resume: bool) -> None:
        """Create the files of a new run, or truncate those of a resumed run after ``step``."""
        if resume:
            self.folder.truncate_after(step)
            self.folder.write_config(self._config_text)
            self.lines = self.folder.step_lines()
            steps = [line for line in self.lines if not is_validation(line)]
            self._collapse.restore([float(line.get("success") or 0.0) for line in steps])
        else:
            self.folder.create(self._config_text)
        self._first_step = step + 1
        self._metrics.record_start(step)
        self._last = time.monotonic()

    def record_checkpoint(self, seconds: float) -> None:
        """Record how long a checkpoint took."""
        self._metrics.record_checkpoint(seconds)

    async def record(
        self, groups: Sequence[Group], update: StepUpdate, version: int, state: RunState, timer: StepTimer
    ) -> None:
        """Record one step; ``version`` is the policy version that was trained."""
        summary = summarize_rollouts(groups)
        state.mean_reward = summary.get("reward", 0.0)
        now = time.monotonic()
        line: dict[str, float | int | str | bool | None] = {
            "step": state.step,
            **{name: round(value, 6) for name, value in (summary | summarize_update(update.report)).items()},
            "logprob_mismatch": update.logprob_mismatch,
            "staleness": measure_staleness(groups, version),
            "collapse_warning": self._collapse.observe(summary.get("success", 0.0)),
            "policy_version": state.version,
            "fingerprint": state.fingerprint,
            "seconds": round(now - self._last, 4),
            **{f"seconds_{name}": round(seconds, 4) for name, seconds in timer.seconds.items()},
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

    async def record_validation(self, line: StepLine, step: int) -> None:
        """Record the validation of the version that ``step`` trained; its line follows that of the step."""
        self.lines.append(line)
        self._metrics.record_validation(line)
        await asyncio.to_thread(self._write_validation, line, step)

    def _write_validation(self, line: StepLine, step: int) -> None:
        with explain_disk_full(f"the validation of step {step} in {self.folder.path}", "free some space and resume"):
            if self._tensorboard is not None:
                self._tensorboard.write(
                    {name: value for name, value in line.items() if name.startswith(PREFIX)}, step, self._first_step
                )
            self.folder.append(line)

    def _write(self, line: StepLine, groups: Sequence[Group], step: int) -> None:
        with explain_disk_full(f"the records of step {step} in {self.folder.path}", "free some space and resume"):
            self._write_files(line, groups, step)

    def _write_files(self, line: StepLine, groups: Sequence[Group], step: int) -> None:
        if self._trajectories_every and step % self._trajectories_every == 0:
            write_trajectories(self.folder.trajectory_file(step), step, groups, self._tokenizer)
        if self._tensorboard is not None:
            self._tensorboard.write(line, step, self._first_step)
        self.folder.append(line)  # last: a step that has a line has its trajectories, too


class TensorboardLog:
    """Writes every number of a step as a scalar; opens its event file with the first step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = None

    def write(self, line: StepLine, step: int, first_step: int | None = None) -> None:
        """Write one step or validation and flush; ``first_step`` is the first that this process trains (None: this)."""
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

            # With purge_step TensorBoard hides the events from this step on that an earlier process wrote before it was
            # killed: the resumed run repeats them. With validations it is not ``step``, since the first event may be
            # that of the version that the run was resumed with, whose step has its events already.
            self._writer = SummaryWriter(str(self._folder), purge_step=step if first_step is None else first_step)
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, float(value), step)
        self._writer.flush()
