"""Provides the control operations of a running training job: status, pause, resume, checkpoint, stop."""

import asyncio
import logging
from pathlib import Path

from searchrl.errors import Conflict, Unavailable
from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import Phase, RunState
from services.trainer.training_loop import TrainingLoop

logger = logging.getLogger(__name__)

ENDED_PHASES = frozenset({Phase.FINISHED, Phase.FAILED})


class TrainingService:
    """Runs the training loop and reports on it; requests take effect between two steps."""

    def __init__(self, loop: TrainingLoop, state: RunState, run_logger: RunLogger) -> None:
        self._loop = loop
        self._state = state
        self._run_logger = run_logger
        self._ended = asyncio.Event()

    @property
    def ended(self) -> asyncio.Event:
        """Set when the run is over, finished or failed."""
        return self._ended

    async def run(self, resume: bool) -> None:
        """Train until the run is finished, stopped or failed.

        Raises:
            Exception: whatever ended the run; the state names it.
        """
        self._state.phase = Phase.RUNNING
        try:
            await self._loop.run(resume)
        except BaseException as error:  # a cancelled run is over, too: status calls must not report it as running
            self._state.end(Phase.FAILED, str(error) or type(error).__name__)
            raise
        else:
            self._state.end(Phase.FINISHED)
        finally:
            # After the phase is final: the servers stop when this is set, and calls until then must see how the run
            # ended.
            self._ended.set()

    def status(self) -> RunState:
        """Return the state of the run."""
        return self._state

    def metrics(self, since_step: int) -> list[StepLine]:
        """Return the lines of the steps from ``since_step`` on."""
        return [line for line in self._run_logger.lines if int(line.get("step") or 0) >= since_step]

    def pause(self) -> RunState:
        """Finish the running step, then wait for ``resume``.

        Raises:
            Conflict: the run is over.
        """
        self._require_running()
        self._state.request(paused=True)
        return self._state

    def resume(self) -> RunState:
        """Continue after ``pause``.

        Raises:
            Conflict: the run is over.
        """
        self._require_running()
        self._state.request(paused=False)
        return self._state

    async def save_checkpoint(self) -> tuple[Path, int]:
        """Save after the running step; return the checkpoint's folder and step.

        Raises:
            Conflict: the run is over.
            Unavailable: it ended before the checkpoint was written.
        """
        self._require_running()
        self._state.request(checkpoint=True)
        await self._state.wait_for_checkpoint()
        # The end of a run wakes this call as well, and then the request may still be open.
        if self._state.checkpoint_wanted:
            raise Unavailable(f"the run ended without the checkpoint: {self._state.error}", retry_after_seconds=None)
        return self._state.last_checkpoint, self._state.saved_step

    def stop(self) -> RunState:
        """Finish the running step, save a checkpoint and end the run."""
        if self._state.phase not in ENDED_PHASES:
            self._state.request(stop=True)
            self._state.phase = Phase.STOPPING
        return self._state

    def stop_if(self, draining: bool) -> None:
        """If the process is draining, abandon the rollouts in flight, save a checkpoint and end the run.

        A resumed run samples these rollouts again.
        """
        if draining and self._state.phase not in ENDED_PHASES:
            self._state.interrupt()
            self._state.phase = Phase.STOPPING

    def _require_running(self) -> None:
        if self._state.phase in ENDED_PHASES or self._state.phase is Phase.STOPPING:
            raise Conflict(f"the run is {self._state.phase}")
