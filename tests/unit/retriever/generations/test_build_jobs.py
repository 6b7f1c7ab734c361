"""Build jobs outlive the callers who started them, and report to whoever asks next.

``await asyncio.sleep(0)`` lets a listener that was just created join the job before the build may end.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from searchrl.errors import Conflict, InvalidRequest, ServiceError, Unavailable
from services.retriever.generations import build_jobs
from services.retriever.generations.build_jobs import BuildJobs, BuildStep, IndexBuild, run_build

BUILD = IndexBuild(Path("corpus.jsonl"), "bm25")
DONE_BYTES, TOTAL_BYTES = 3 << 30, 14_000_000_000  # bytes; neither fits into a signed 32-bit number
FIRST, DONE = BuildStep("read", 1, 2), BuildStep("done", 1, 1, "g1")


class Builder:
    """Replaces the child process: one step, then the end when the test permits it."""

    def __init__(self) -> None:
        self.started = 0
        self.stopped = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None
        self.activated: list[str] = []

    async def run(self, output: Path, build: IndexBuild) -> AsyncGenerator[BuildStep, None]:
        self.started += 1
        try:
            yield FIRST
            await self.may_end.wait()
            if self.error is not None:
                raise self.error
            yield DONE
        finally:
            self.stopped += 1

    async def activate(self, generation: str) -> None:
        self.activated.append(generation)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(build_jobs, "run_build", made.run)
    return made


@pytest.fixture
def jobs(builder: Builder, tmp_path: Path) -> BuildJobs:
    return BuildJobs(tmp_path, builder.activate)


async def listen(jobs: BuildJobs, activate: bool = False, build: IndexBuild = BUILD) -> list[BuildStep]:
    return [step async for step in jobs.follow(build, activate)]


async def leave_after_the_first_step(jobs: BuildJobs, activate: bool = False) -> None:
    async with aclosing(jobs.follow(BUILD, activate)) as steps:
        assert await anext(steps) == FIRST


async def test_a_caller_that_disconnects_can_join_the_same_build_again(jobs: BuildJobs, builder: Builder) -> None:
    await leave_after_the_first_step(jobs)
    again = asyncio.create_task(listen(jobs))
    await asyncio.sleep(0)
    builder.may_end.set()
    assert await again == [FIRST, DONE]
    assert builder.started == 1


async def test_a_build_whose_caller_disconnected_is_put_in_service_and_reported_to_the_next_caller(
    jobs: BuildJobs, builder: Builder
) -> None:
    await leave_after_the_first_step(jobs, activate=True)
    builder.may_end.set()
    async with asyncio.timeout(10):
        while jobs._job is None or not jobs._job.is_over:
            await asyncio.sleep(0)
    assert await listen(jobs, activate=True) == [DONE]
    assert (builder.started, builder.activated) == (1, ["g1"])
    assert await listen(jobs) == [FIRST, DONE]  # the outcome was reported, so this is a new build
    assert builder.started == 2


async def test_one_of_two_callers_who_wants_it_in_service_gets_it(jobs: BuildJobs, builder: Builder) -> None:
    both = [asyncio.create_task(listen(jobs, activate)) for activate in (False, True)]
    await asyncio.sleep(0)
    builder.may_end.set()
    assert [steps[-1] for steps in await asyncio.gather(*both)] == [DONE, DONE]
    assert (builder.started, builder.activated) == (1, ["g1"])


async def test_a_caller_that_joins_a_finished_build_can_still_activate_it(jobs: BuildJobs, builder: Builder) -> None:
    await leave_after_the_first_step(jobs)
    builder.may_end.set()
    async with asyncio.timeout(10):
        while jobs._job is None or not jobs._job.is_over:
            await asyncio.sleep(0)
    assert await listen(jobs, activate=True) == [DONE]
    assert (builder.started, builder.activated) == (1, ["g1"])


async def test_another_build_is_refused_while_one_runs(jobs: BuildJobs, builder: Builder) -> None:
    await leave_after_the_first_step(jobs)
    with pytest.raises(Conflict, match=r"bm25 of corpus\.jsonl"):
        await listen(jobs, build=BUILD._replace(kind="hybrid"))
    builder.may_end.set()
    assert (await listen(jobs))[-1] == DONE


async def test_a_failure_reaches_every_listener_and_asking_again_builds_again(
    jobs: BuildJobs, builder: Builder
) -> None:
    builder.error = InvalidRequest("unusable rows")
    both = [asyncio.create_task(listen(jobs)) for _ in range(2)]
    await asyncio.sleep(0)
    builder.may_end.set()
    for failed in both:
        with pytest.raises(InvalidRequest, match="unusable rows"):
            await failed
    builder.error = None
    assert (await listen(jobs))[-1] == DONE
    assert builder.started == 2


async def test_closing_stops_the_build_and_fails_its_listeners(jobs: BuildJobs, builder: Builder) -> None:
    listening = asyncio.create_task(listen(jobs))
    async with asyncio.timeout(10):
        while not builder.started:
            await asyncio.sleep(0)
    jobs.close()
    with pytest.raises(Unavailable, match="stopping"):
        await listening
    assert builder.stopped == 1


async def test_a_build_of_what_the_corpus_held_before_is_not_reported_for_the_new_one(
    jobs: BuildJobs, builder: Builder, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("old")
    build = BUILD._replace(corpus=corpus)
    async with aclosing(jobs.follow(build, False)) as steps:
        await anext(steps)
    builder.may_end.set()
    async with asyncio.timeout(10):
        while jobs._job is None or not jobs._job.is_over:
            await asyncio.sleep(0)
    corpus.write_text("newer")
    assert (await listen(jobs, build=build))[-1] == DONE
    assert builder.started == 2


async def test_closing_before_the_first_step_fails_the_waiting_caller(jobs: BuildJobs) -> None:
    steps = jobs.follow(BUILD, False)
    first = asyncio.ensure_future(anext(steps))
    asyncio.get_running_loop().call_soon(jobs.close)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(first, 10)


async def test_progress_beyond_two_gibibytes_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "large_build.py"
    line = f'{{"phase":"read","done":{DONE_BYTES},"total":{TOTAL_BYTES}}}'
    program.write_text(f"import sys\nsys.stderr.write({line!r} + chr(10))\nprint('g1')\n")
    monkeypatch.setattr(build_jobs, "_COMMAND", "large_build")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    steps = [step async for step in run_build(tmp_path, IndexBuild(tmp_path / "corpus.jsonl", "bm25"))]
    assert steps == [BuildStep("read", DONE_BYTES, TOTAL_BYTES), BuildStep("done", 1, 1, "g1")]


async def test_a_killed_build_process_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed_build.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(build_jobs, "_COMMAND", "killed_build")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ServiceError, match=r"was killed \(SIGKILL\); its files are removed"):
        _ = [step async for step in run_build(tmp_path, IndexBuild(tmp_path / "corpus.jsonl", "bm25"))]


@pytest.mark.parametrize("end", ["", "\n"])
async def test_a_long_line_of_the_build_process_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    # 200,000 bytes: more than asyncio's limit of 64 KiB for a line
    (tmp_path / "wordy_build.py").write_text(f"import sys\nsys.stderr.write('x' * 200_000 + {end!r})\nprint('g1')\n")
    monkeypatch.setattr(build_jobs, "_COMMAND", "wordy_build")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    steps = [step async for step in run_build(tmp_path, IndexBuild(tmp_path / "corpus.jsonl", "bm25"))]
    assert steps == [BuildStep("done", 1, 1, "g1")]
