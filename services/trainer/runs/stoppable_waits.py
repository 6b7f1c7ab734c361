"""Waits that a request to stop the run ends."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from services.trainer.runs.run_state import RunState


class StoppableWaits:
    """Waits for work of a run, but not longer than the run is to continue.

    Args:
        wait_for_outage: returns once services fail, so that the work of a step may never finish.
    """

    def __init__(self, state: RunState, wait_for_outage: Callable[[], Awaitable[None]]) -> None:
        self._state = state
        self._wait_for_outage = wait_for_outage

    async def finish_before_stop(self, work: Coroutine[Any, Any, None]) -> bool:
        """Wait for ``work``; False if a stop was requested meanwhile, which cancels it."""
        working = asyncio.create_task(work)
        stopped = asyncio.create_task(self._state.wait_for_stop())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working  # raises what the work raised
            return working.done()
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)

    async def finish_unless_stopped(self, *work: asyncio.Task[Any]) -> bool:
        """Wait for the first of these tasks; False if the run is to stop and must not wait for them.

        That is the case if a stop was requested and an outage keeps them from finishing, or if the process received
        SIGTERM. A stop request alone waits: the running step is finished and trained.
        """
        # The tasks race, because each of the events may come first and none of them implies another. The others are
        # then cancelled and awaited, so that no task outlives its step; running groups stay with the orchestrator.
        stopped_in_outage = asyncio.create_task(self._wait_for_stop_in_outage())
        interrupted = asyncio.create_task(self._state.wait_for_interruption())
        waits = (*work, stopped_in_outage, interrupted)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finished = [task for task in work if task.done()]
            for task in finished:
                task.result()  # raises what ends the run
            return bool(finished)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def sleep(self, seconds: float) -> None:
        """Sleep; a stop request ends the pause early."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._state.wait_for_stop()

    async def _wait_for_stop_in_outage(self) -> None:
        await self._state.wait_for_stop()
        await self._wait_for_outage()
