"""Holds the state of a run and the requests that control calls made."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Phase(StrEnum):
    """Values of the status call; also a metric label."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(slots=True)
class RunState:
    """Shared by the training loop, which updates it, and the control calls, which make requests.

    Both run in one event loop, so no lock is needed.

    Attributes:
        interrupted: the process received SIGTERM; the run ends without waiting for the rollouts in flight.
        step: training steps finished.
        version: of the policy; the number of its steps, and that of the versions that rollbacks left behind.
        saved_step: step of the newest checkpoint; -1 before the first.
        validation: line of the newest validation; None before the first, and without validation.
        completed: the run has reached its end, and its model is exported.
    """

    run_id: str
    total_steps: int
    phase: Phase = Phase.STARTING
    step: int = 0
    version: int = 0
    fingerprint: str = ""
    mean_reward: float = 0.0
    last_checkpoint: Path = field(default_factory=Path)
    saved_step: int = -1
    validation: Mapping[str, float | int | str | bool | None] | None = None
    completed: bool = False
    error: str = ""
    paused: bool = False
    stop_requested: bool = False
    checkpoint_wanted: bool = False
    interrupted: bool = False
    # Only ``_changed`` has a single waiter, the loop, which clears it. The others may have several, and the last two
    # are never cleared: a stop cannot be withdrawn.
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _saved: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _interruption: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_waiting(self) -> bool:
        """Whether the run is paused, or will be after the running step."""
        return self.paused and self.phase is Phase.RUNNING

    def request(self, *, paused: bool | None = None, stop: bool = False, checkpoint: bool = False) -> None:
        """Record a request; the loop reads it between two steps."""
        if paused is not None:
            self.paused = paused
        if stop:
            self.stop_requested = True
            self._stopping.set()
        if checkpoint:
            self.checkpoint_wanted = True
            self._saved.clear()
        self._changed.set()

    async def wait_for_change(self) -> None:
        """Wait for a request; return at once if one was made since the last wait."""
        await self._changed.wait()
        self._changed.clear()

    async def wait_for_stop(self) -> None:
        """Wait until a stop is requested."""
        await self._stopping.wait()

    def interrupt(self) -> None:
        """Record that the process must end soon; this is a stop request, too."""
        self.interrupted = True
        self._interruption.set()
        self.request(stop=True)

    async def wait_for_interruption(self) -> None:
        """Wait until ``interrupt`` is called."""
        await self._interruption.wait()

    async def wait_for_checkpoint(self) -> None:
        """Wait until the requested checkpoint is on disk, or the run has ended."""
        await self._saved.wait()

    def record_checkpoint(self, folder: Path, step: int) -> None:
        """Record that a checkpoint of ``step`` is on disk."""
        self.last_checkpoint, self.saved_step = folder, step

    def answer_checkpoint(self) -> None:
        """Answer those who requested a checkpoint: that of the newest step is on disk."""
        self.checkpoint_wanted = False
        self._saved.set()

    def end(self, phase: Phase, error: str = "") -> None:
        """Record that the run is over, and wake everyone who waits for it."""
        # Callers that wait for a checkpoint wake up too: the run that they wait for writes no more.
        self.phase, self.error = phase, error
        self._saved.set()
        self._changed.set()
