"""Saves the checkpoints of a run: the learner's state is copied between two steps, and written while the next one runs.

At most one copy exists, so a checkpoint waits for the one before it. A failed write ends the run at the end of the step
that runs beside it, and the previous checkpoint stays.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.trainer.checkpoints.checkpoint_store import Checkpoint, CheckpointStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointSeconds:
    """Time of a checkpoint: while the next step waited for it, and beside that step."""

    blocking: float
    background: float = 0.0


class CapturedLearner(Protocol):
    """The learner whose state is saved; see ``LearnerThread``."""

    async def capture(self) -> Callable[[Path], None]: ...

    async def save(self, save: Callable[[Callable[[Path], None]], Checkpoint]) -> Checkpoint: ...


OnWritten = Callable[[Checkpoint, CheckpointSeconds], object]


class CheckpointWriter:
    """Writes one checkpoint at a time into a store; used in one event loop.

    Args:
        background: write while the next step runs; False: ``save`` returns when the checkpoint is complete.
    """

    def __init__(self, store: CheckpointStore, learner: CapturedLearner, *, background: bool) -> None:
        self._store = store
        self._learner = learner
        self._background = background
        self._writing: asyncio.Task[None] | None = None
        self.step: int | None = None  # of the checkpoint that is being written

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written.

        Raises:
            Exception: what the last write raised.
        """
        if self._writing is None or not self._writing.done():
            return self._writing is not None
        written, self._writing = self._writing, None
        written.result()
        return False

    async def save(
        self, step: int, metadata: Mapping[str, Any], on_written: OnWritten, also_keep: Sequence[int] = ()
    ) -> None:
        """Save the learner's state as the checkpoint of ``step``, after the one that is being written.

        Args:
            on_written: called when the checkpoint is complete.
            also_keep: steps of older checkpoints that are not removed now.

        Raises:
            Exception: what this write or the one before raised; older checkpoints are untouched.
        """
        started = time.perf_counter()
        await self.finish()
        if not self._background:
            checkpoint = await self._learner.save(lambda write: self._store.save(step, write, metadata, also_keep))
            on_written(checkpoint, CheckpointSeconds(time.perf_counter() - started))
            return
        write = await self._learner.capture()
        blocking = time.perf_counter() - started
        self.step = step
        self._writing = asyncio.create_task(self._write(write, metadata, blocking, on_written, also_keep))

    async def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any.

        Raises:
            Exception: what its write raised.
        """
        if (writing := self._writing) is None:
            return
        await asyncio.wait({writing})  # the end of this wait does not end the write
        self._writing = None
        writing.result()

    async def close(self) -> None:
        """Wait for the checkpoint that is being written, if any; a failure is logged."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
            if (error := self._writing.exception()) is not None:
                logger.error("the last checkpoint was not written: %s", error)
            self._writing = None

    async def _write(
        self,
        write: Callable[[Path], None],
        metadata: Mapping[str, Any],
        blocking: float,
        on_written: OnWritten,
        also_keep: Sequence[int],
    ) -> None:
        assert self.step is not None
        started = time.perf_counter()
        try:
            checkpoint = await asyncio.to_thread(self._store.save, self.step, write, metadata, also_keep)
        finally:
            self.step = None
        on_written(checkpoint, CheckpointSeconds(blocking, time.perf_counter() - started))
