"""Builds indexes for a running service: in a separate process, independently of the callers.

A child process builds, so that searches are not slowed down. Each build is one task of the event loop, which records
the steps; any number of callers read them from the job, so a dropped connection does not end hours of work.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import Field

from searchrl.errors import Conflict, InvalidRequest, ServiceError, Unavailable
from searchrl.platform import parent_death_signal
from searchrl.platform.settings import Section
from services.retriever.indexes import INDEX_KINDS

logger = logging.getLogger(__name__)

_COMMAND = "services.retriever.build_index"
_UNUSABLE_INPUT, _REFUSED = 2, 1  # exit codes of the build command
Activate = Callable[[str], Awaitable[object]]


class BuildSettings(Section):
    """Index builds requested over the network."""

    corpus_root: Path | None = Field(default=None, description="Corpora must be under this folder; unset: anywhere.")


class BuildStep(NamedTuple):
    """Progress of a build; ``generation`` is set in the last step."""

    phase: str
    done: int
    total: int
    generation: str = ""


class IndexBuild(NamedTuple):
    """What to build; ``options`` are further arguments of the build command."""

    corpus: Path
    kind: str
    options: Sequence[str] = ()


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

    Args:
        encoder_options: arguments of the build command for kinds with vectors, such as the encoder's folder.
    """

    def __init__(
        self,
        output: Path,
        activate: Activate,
        settings: BuildSettings = BuildSettings(),
        encoder_options: Sequence[str] = (),
    ) -> None:
        self._output = output
        self._activate = activate
        self._settings = settings
        self._encoder_options = encoder_options
        self._job: _Job | None = None
        self._task: asyncio.Task[None] | None = None

    def plan(self, corpus: str, kind: str) -> IndexBuild:
        """The build of a corpus file that a caller names.

        Raises:
            InvalidRequest: unknown kind, or a corpus that is missing or outside the allowed folder.
        """
        if kind not in INDEX_KINDS:
            raise InvalidRequest(f"unknown kind '{kind}'; known: {', '.join(INDEX_KINDS)}")
        path = Path(corpus).resolve()
        root = self._settings.corpus_root
        if root is not None and not path.is_relative_to(root.resolve()):
            raise InvalidRequest(f"corpora must be under {root}")
        if not corpus or not path.is_file():
            raise InvalidRequest(f"there is no corpus file '{corpus}'")
        return IndexBuild(path, kind, self._encoder_options if INDEX_KINDS[kind].has_vectors else ())

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
        # There is no ``await`` between the checks above and this assignment, so two requests cannot both start a build.
        self._job = job = _Job(build, corpus_state)
        self._task = asyncio.create_task(self._run(job))
        # Not a ``finally`` in ``_run``: a task that is cancelled before its first step never enters its body.
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


async def run_build(output: Path, build: IndexBuild) -> AsyncGenerator[BuildStep, None]:
    """Build in a child process and yield its progress. Leaving the loop early stops the child, and so does the end of
    this process: an orphan would hold the lock, and nobody would learn of its result.

    Raises:
        InvalidRequest: the corpus or an option is unusable.
        Conflict: another build is running.
        ServiceError: the child died.
    """
    # The first program asks the kernel for a signal at this process's death, then becomes the build by exec, so the
    # child's process id is that of the build. The build does not activate: this process first opens the generation,
    # then makes it current.
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", parent_death_signal.__file__, str(os.getpid()),
        sys.executable, "-m", _COMMAND, "--corpus", str(build.corpus), "--output", str(output), "--kind", build.kind,
        "--no-activate", "--progress", "json", *build.options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    messages: list[str] = []
    try:
        # All of stderr before stdout cannot block the child: on stdout it writes one line, which fits into the pipe.
        while line := await _read_line(child.stderr):
            if line.startswith(b'{"phase"'):
                yield BuildStep(**orjson.loads(line))
            else:
                messages.append(line.decode("utf-8", "replace").rstrip())
        generation = (await child.stdout.read()).decode().strip()
        code = await child.wait()
    finally:
        if child.returncode is None:
            # SIGKILL leaves the note in the build lock, so that the interruption is reported. The next build removes
            # the files.
            child.kill()
            await child.wait()
    if code != 0:
        raise _failure(code, messages)
    yield BuildStep("done", 1, 1, generation)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """The next line, empty at the end; one over the stream's limit of 64 KiB comes in parts, instead of an error."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(error.consumed)


def _failure(code: int, messages: Sequence[str]) -> ServiceError:
    if code < 0:
        name = signal.Signals(-code).name
        return ServiceError(f"the build process was killed ({name}); its files are removed; request the build again")
    starts = [number for number, message in enumerate(messages) if message.startswith("build_index: ")]
    text = "\n".join(messages[starts[-1] :] if starts else messages[-3:]).removeprefix("build_index: ")
    if code == _UNUSABLE_INPUT:
        return InvalidRequest(text)
    # Python exits with 1 after a traceback, too; only a message of the command itself means that it refused.
    if code == _REFUSED and starts:
        return Conflict(text)
    return ServiceError(f"the build process ended with code {code}: {text}")
