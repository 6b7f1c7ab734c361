"""Runs index builds independently of their callers, so that a dropped connection does not end hours of work.

Each build is one task of the event loop, which records the steps; any number of callers read them from the job.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from searchrl.errors import Conflict, Unavailable
from services.retriever.indexes.build_process import BuildStep, IndexBuild, run_build

logger = logging.getLogger(__name__)

Activate = Callable[[str], Awaitable[object]]


@dataclass(eq=False)
class _Job:
    """A running build, or one that ended while no caller listened. Used in the event loop only.

    Attributes:
        corpus_state: size and modification time of the corpus when the build was requested.
        activate: whether any caller asked for the generation to be activated.
        is_active: it was put in service.
        changed: replaced at every change, so that each waiter waits for the next one.
    """

    build: IndexBuild
    corpus_state: tuple[int, int] | None
    activate: bool = False
    is_active: bool = False
    listeners: int = 0
    steps: list[BuildStep] = field(default_factory=list)
    is_over: bool = False
    error: BaseException | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Wake all waiters; later waits are for the next change."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class BuildJobs:
    """At most one build at a time. Requesting the running build joins it; a caller that leaves changes nothing.

    A build that succeeded while no caller listened is reported to the next one that requests it. One that failed that
    way is logged, and requesting it starts it again.
    """

    def __init__(self, output: Path, activate: Activate) -> None:
        self._output = output
        self._activate = activate
        self._job: _Job | None = None
        self._task: asyncio.Task[None] | None = None

    async def follow(self, build: IndexBuild, activate: bool) -> AsyncGenerator[BuildStep, None]:
        """Start or join a build and yield its progress, from the latest step on.

        Raises:
            Conflict: another build is running.
            Unavailable: the service is stopping.
            ServiceError: as ``run_build`` and the activation.
        """
        job = self._start_or_join(build)
        job.activate = job.activate or activate
        job.listeners += 1
        seen = max(0, len(job.steps) - 1)
        try:
            while True:
                for step in job.steps[seen:]:
                    # A caller may join when the build has already decided that nobody wants it in service.
                    if step.generation and activate and not job.is_active:
                        await self._activate(step.generation)
                    seen += 1
                    yield step
                if seen == len(job.steps):
                    if job.is_over:
                        break
                    await job.changed.wait()
        finally:
            job.listeners -= 1
        self._forget(job)
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """Stop the running build; the next build removes its unfinished files."""
        if self._task is not None:
            self._task.cancel()

    def _start_or_join(self, build: IndexBuild) -> _Job:
        job, corpus_state = self._job, _state_of(build.corpus)
        if job is not None and (job.build, job.corpus_state) == (build, corpus_state):
            return job
        if job is not None and not job.is_over:
            raise Conflict(f"another build is running: {job.build.kind} of {job.build.corpus}")
        self._job = job = _Job(build, corpus_state)
        self._task = asyncio.create_task(self._run(job))
        self._task.add_done_callback(partial(self._end, job))
        return job

    async def _run(self, job: _Job) -> None:
        async with aclosing(run_build(self._output, job.build)) as steps:
            async for step in steps:
                if step.generation and job.activate:
                    await self._activate(step.generation)
                    job.is_active = True
                job.steps.append(step)
                job.wake()

    def _end(self, job: _Job, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            job.error = Unavailable("the retriever is stopping, which ends the build")
        else:
            job.error = task.exception()
        if job.error is not None:
            self._forget(job)
            if not job.listeners:
                logger.error("an index build failed while no caller listened", exc_info=job.error)
        job.is_over = True
        job.wake()

    def _forget(self, job: _Job) -> None:
        """Let the next request start a new build."""
        if self._job is job:
            self._job = None


def _state_of(corpus: Path) -> tuple[int, int] | None:
    """Size and modification time of the corpus: a build of its earlier contents is another build."""
    try:
        found = corpus.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
