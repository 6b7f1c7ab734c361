"""Where is a run, and what was it asked to do?"""

import asyncio
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
    """Shared by the loop, which moves it on, and the control calls, which ask for things. One event loop only.

    Attributes:
        interrupted: told to end as soon as it can be continued; the rollouts in flight are not waited for.
        step: training steps finished; the policy version is the same number once published.
        saved_step: step of the newest checkpoint; -1 before the first.
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
    error: str = ""
    paused: bool = False
    stop_requested: bool = False
    checkpoint_wanted: bool = False
    interrupted: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _saved: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _leaving: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_waiting(self) -> bool:
        """Paused, or about to be after the running step."""
        return self.paused and self.phase is Phase.RUNNING

    def ask(self, *, paused: bool | None = None, stop: bool = False, checkpoint: bool = False) -> None:
        """Note a request; the loop reads it between two steps."""
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
        """Wait for a request; one that came since the last wait counts too."""
        await self._changed.wait()
        self._changed.clear()

    async def wait_for_stop(self) -> None:
        """Wait until the run was asked to stop."""
        await self._stopping.wait()

    def interrupt(self) -> None:
        """Note that the process has little time left."""
        self.interrupted = True
        self._leaving.set()
        self.ask(stop=True)

    async def wait_for_interruption(self) -> None:
        """Wait until the process was told to end."""
        await self._leaving.wait()

    async def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that was asked for is on disk, or the run ended."""
        await self._saved.wait()

    def checkpoint_saved(self, folder: Path, step: int) -> None:
        """A checkpoint of ``step`` is on disk."""
        self.last_checkpoint, self.saved_step = folder, step
        self.checkpoint_wanted = False
        self._saved.set()

    def end(self, phase: Phase, error: str = "") -> None:
        """The run is over."""
        self.phase, self.error = phase, error
        self._saved.set()
        self._changed.set()
