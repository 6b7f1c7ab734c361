"""Checkpoints are written beside the next step, one at a time; a failed write keeps the one before and ends the run."""

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searchrl.errors import Unavailable
from services.trainer.checkpoints.checkpoint_store import Checkpoint, CheckpointStore
from services.trainer.checkpoints.checkpoint_writer import CheckpointSeconds, CheckpointWriter
from services.trainer.runs.run_state import Phase
from tests.fakes.small_run import SmallRun


class SlowLearner:
    """A learner with one number, whose copies are written when ``released`` is set."""

    def __init__(self) -> None:
        self.value = 0
        self.copies = 0
        self.released = threading.Event()
        self.error: OSError | None = None

    async def capture(self) -> Callable[[Path], None]:
        assert self.copies == 0, "two copies at once"
        self.copies += 1
        value = self.value

        def write(folder: Path) -> None:
            assert self.released.wait(60)
            self.copies -= 1
            if self.error is not None:
                raise self.error
            (folder / "value").write_text(str(value))

        return write


def build(folder: Path) -> tuple[Any, CheckpointStore, CheckpointWriter, list[int]]:
    learner: Any = SlowLearner()
    store = CheckpointStore(folder)
    return learner, store, CheckpointWriter(store, learner, background=True), []


def recorder(written: list[int]) -> Callable[[Checkpoint, CheckpointSeconds], None]:
    return lambda checkpoint, _: written.append(checkpoint.step)


async def test_a_checkpoint_has_the_state_of_its_step_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    learner, store, writer, written = build(tmp_path)
    await writer.save(1, {}, recorder(written))
    learner.value = 7
    assert (writer.is_writing(), writer.step, written, store.steps()) == (True, 1, [], [])
    second = asyncio.create_task(writer.save(2, {}, recorder(written)))
    await asyncio.sleep(0)
    assert not second.done()  # ``capture`` asserts that there is one copy
    learner.released.set()
    await second
    await writer.finish()
    assert (writer.is_writing(), writer.step, written) == (False, None, [1, 2])
    assert [(tmp_path / f"step_{step}" / "value").read_text() for step in (1, 2)] == ["0", "7"]


async def test_a_full_disk_is_explained_at_the_end_of_the_step_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    learner, store, writer, written = build(tmp_path)
    learner.released.set()
    await writer.save(1, {}, recorder(written))
    await writer.finish()
    for ask in (writer.finish, lambda: writer.save(3, {}, recorder(written))):
        learner.error = OSError(errno.ENOSPC, "No space left on device")
        await writer.save(2, {}, recorder(written))
        with pytest.raises(
            Unavailable, match=r"no space left for the checkpoint of step 2.*older checkpoints are intact"
        ):
            await ask()
    await writer.save(2, {}, recorder(written))
    while writer.step is not None:
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="no space left"):
        writer.is_writing()
    assert written == [1] and store.steps() == [1] and (tmp_path / "latest").read_text() == "step_1\n"


async def test_closing_waits_for_the_write_and_logs_its_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner, store, writer, written = build(tmp_path)
    for step, error in ((1, None), (2, OSError("a broken disk"))):
        learner.released.clear()
        learner.error = error
        await writer.save(step, {}, recorder(written))
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        assert not closing.done()
        learner.released.set()
        await closing
        assert ("a broken disk" in caplog.text) == (error is not None)
    assert written == store.steps() == [1]


async def test_a_run_has_the_same_bits_and_checkpoints_whether_it_writes_beside_its_steps(tmp_path: Path) -> None:
    runs = {
        name: await SmallRun(tmp_path / str(name), steps=2, checkpoints__background=name).train()
        for name in (True, False)
    }
    assert runs[True].fingerprints == runs[False].fingerprints
    stores = [CheckpointStore(run.folder / "checkpoints") for run in runs.values()]
    found = [store.load(step) for store in stores for step in store.steps()]
    assert [checkpoint.step for checkpoint in found] == [1, 2, 1, 2]
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one.metadata == other.metadata
        for name in ("weights.safetensors", "state.pt"):
            assert (one.folder / "learner" / name).read_bytes() == (other.folder / "learner" / name).read_bytes()
    seconds = runs[True].registry.get_sample_value("searchrl_trainer_checkpoint_seconds", {"part": "background"})
    assert seconds and seconds > 0
    resumed = await SmallRun(tmp_path / "True", steps=3).train(resume=True)
    assert resumed.fingerprints[:2] == runs[True].fingerprints


async def test_a_stopped_run_waits_for_its_checkpoint_and_a_failed_write_ends_it_with_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CheckpointStore.save
    started, release = threading.Event(), threading.Event()

    def blocked(self: CheckpointStore, step: int, *rest: Any) -> Checkpoint:
        if step == 1:
            started.set()
            assert release.wait(60)
        if step == 3:
            raise OSError("a broken disk")
        return save(self, step, *rest)

    monkeypatch.setattr(CheckpointStore, "save", blocked)
    run = SmallRun(tmp_path, steps=9)
    running = asyncio.create_task(run.train())
    await asyncio.to_thread(started.wait, 60)
    run.service.stop_if(draining=True)
    assert run.service.status().saved_step < 1
    release.set()
    await running
    state = run.service.status()
    assert (state.phase, state.saved_step) == (Phase.FINISHED, state.step) and state.step >= 1
    failed = SmallRun(tmp_path, steps=9)
    with pytest.raises(OSError, match="a broken disk"):
        await failed.train(resume=True)
    assert failed.service.status().saved_step == 2 and len(failed.lines) <= 4
    assert (run.folder / "checkpoints" / "latest").read_text() == "step_2\n"
