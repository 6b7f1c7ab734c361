"""The trainer's client controls a run and reads its steps; against the trainer's own server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from searchrl.clients.trainer_client import TrainerClient
from searchrl.errors import ErrorKind, ServiceError
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from services.trainer.grpc_servicer import validation_to_wire
from services.trainer.metrics import TrainerMetrics
from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import RunState
from services.trainer.training_loop import TrainingLoop
from services.trainer.training_service import TrainingService
from services.trainer.wiring import ADMIN_METHODS, service_spec

KEY = "a-key-of-the-tests-only"
CONTROL = {"Pause": "pause", "Resume": "resume", "SaveCheckpoint": "save_checkpoint", "Stop": "stop"}


VALIDATION = {
    "step": 2, "validation_set": "q", "validation_success": 0.75, "validation_reward": 0.5, "validation_questions": 8,
    "validation_unscorable": 0, "validation_best_step": 1, "validation_best": 0.875, "policy_version": 2, "time": 5.5,
}  # fmt: skip


class TwoSteps:
    """A training loop with two steps, the second validated; it saves a checkpoint when asked to, or to stop."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self.lines: list[StepLine] = []

    async def run(self, resume: bool) -> None:
        for reward in (0.25, 0.5):
            self._state.step += 1
            self.lines.append({"step": self._state.step, "reward": reward, "note": "no number"})
        self._state.validation = VALIDATION
        self.lines.append(VALIDATION)
        while not self._state.stop_requested:
            await self._state.wait_for_change()
            if self._state.checkpoint_wanted or self._state.stop_requested:
                self._state.record_checkpoint(Path("/runs/first/step_2"), self._state.step)
                self._state.answer_checkpoint()


@asynccontextmanager
async def training(keys: Path | None = None, key: str | None = None) -> AsyncIterator[TrainerClient]:
    """A client of a training trainer, which is stopped at the end."""
    state = RunState("first", total_steps=5)
    loop = TwoSteps(state)
    service = TrainingService(cast(TrainingLoop, loop), state, cast(RunLogger, loop))
    spec = service_spec(service, KeyRing.from_file(keys), Health(), TrainerMetrics(CollectorRegistry()))
    server = spec.build_grpc_server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    running = asyncio.create_task(service.run(resume=False))
    async with TrainerClient(f"127.0.0.1:{port}", key=key) as client:
        yield client
    service.stop()
    await running
    await server.stop(None)


async def test_it_says_where_the_run_is_and_what_each_step_was() -> None:
    async with training() as client:
        status = await client.get_status()
        assert (status.run_id, status.state, status.step, status.total_steps) == ("first", "running", 2, 5)
        validated = {name: value for name, value in VALIDATION.items() if name.startswith("validation_")}
        numbers = {name: value for name, value in validated.items() if name != "validation_set"}
        assert await client.get_metrics() == {1: {"reward": 0.25}, 2: {"reward": 0.5} | numbers}
        assert list(await client.get_metrics(since_step=2)) == [2]
        assert await client.get_metrics(since_step=3) == {}


async def test_the_status_has_the_last_validation_and_no_difference_without_an_earlier_one() -> None:
    async with training() as client:
        found = (await client.get_status()).validation
        assert (found.step, found.success, found.reward, found.questions) == (2, 0.75, 0.5, 8)
        assert (found.best_step, found.best) == (1, 0.875)
        assert not found.HasField("difference") and not found.HasField("p_value")


def test_a_validation_without_a_success_has_none_on_the_wire() -> None:
    line = {name: value for name, value in VALIDATION.items() if name != "validation_success"}
    assert validation_to_wire(VALIDATION).HasField("success") and not validation_to_wire(line).HasField("success")


async def test_it_pauses_resumes_saves_and_stops() -> None:
    async with training() as client:
        assert (await client.pause()).state == "paused"
        assert (await client.resume()).state == "running"
        saved = await client.save_checkpoint()
        assert (saved.path, saved.step) == ("/runs/first/step_2", 2)
        assert (await client.stop()).state in ("stopping", "finished")
        with pytest.raises(ServiceError, match=r"the run is (stopping|finished)") as refused:
            await client.pause()
        assert refused.value.kind is ErrorKind.CONFLICT


async def test_a_stop_leaves_a_checkpoint() -> None:
    async with training() as client:
        assert (await client.get_status()).last_checkpoint == ""
        await client.stop()
        while (status := await client.get_status()).state != "finished":
            await asyncio.sleep(0)
        assert status.last_checkpoint == "/runs/first/step_2"


async def test_a_key_for_reading_may_not_control_a_run(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(f"- {{name: reader, key: {KEY}, scope: read}}\n")
    async with training(tmp_path / "keys.yaml", KEY) as client:
        assert (await client.get_status()).state == "running"
        assert CONTROL.keys() == ADMIN_METHODS
        for call in CONTROL.values():
            with pytest.raises(ServiceError) as refused:
                await getattr(client, call)()
            assert refused.value.kind is ErrorKind.FORBIDDEN, call
