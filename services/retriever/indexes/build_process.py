"""Builds an index for a running service in a separate process, so that searches are not slowed down."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from searchrl.errors import Conflict, InvalidRequest, ServiceError
from searchrl.platform import parent_death_signal
from services.retriever.indexes.manifest import Kind

_COMMAND = "services.retriever.build_index"
_UNUSABLE_INPUT, _REFUSED = 2, 1  # exit codes of the build command


class BuildStep(NamedTuple):
    """Progress of a build; ``generation`` is set in the last step."""

    phase: str
    done: int
    total: int
    generation: str = ""


class IndexBuild(NamedTuple):
    """What to build; ``options`` are further arguments of the build command."""

    corpus: Path
    kind: Kind
    options: Sequence[str] = ()


async def run_build(output: Path, build: IndexBuild) -> AsyncGenerator[BuildStep, None]:
    """Build in a child process and yield its progress. Leaving the loop early stops the child, and so does the end of
    this process: an orphan would hold the lock, and nobody would learn of its result.

    Raises:
        InvalidRequest: the corpus or an option is unusable.
        Conflict: another build is running.
        ServiceError: the child died.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", parent_death_signal.__file__, str(os.getpid()),
        sys.executable, "-m", _COMMAND, "--corpus", str(build.corpus), "--output", str(output), "--kind", build.kind,
        "--no-activate", "--progress", "json", *build.options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    messages: list[str] = []
    try:
        async for line in child.stderr:
            if line.startswith(b'{"phase"'):
                yield BuildStep(**orjson.loads(line))
            else:
                messages.append(line.decode("utf-8", "replace").rstrip())
        generation = (await child.stdout.read()).decode().strip()
        code = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if code != 0:
        raise _failure(code, messages)
    yield BuildStep("done", 1, 1, generation)


def _failure(code: int, messages: Sequence[str]) -> ServiceError:
    if code < 0:
        name = signal.Signals(-code).name
        return ServiceError(f"the build process was killed ({name}); its files are removed; request the build again")
    starts = [number for number, message in enumerate(messages) if message.startswith("build_index: ")]
    text = "\n".join(messages[starts[-1] :] if starts else messages[-3:]).removeprefix("build_index: ")
    if code == _UNUSABLE_INPUT:
        return InvalidRequest(text)
    if code == _REFUSED and starts:
        return Conflict(text)
    return ServiceError(f"the build process ended with code {code}: {text}")
