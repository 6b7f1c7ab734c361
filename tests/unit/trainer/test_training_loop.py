"""What a run waits for, and what ends a wait: services at the start, the start of the engine, and a push of weights."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from searchrl.errors import ConfigurationError, InvalidRequest, ServiceError, Unavailable
from services.trainer import wiring
from services.trainer.engines import torch_engine
from services.trainer.learner.reports import PublishedWeights
from services.trainer.runs.run_state import Phase
from tests.fakes.small_run import SmallRun


def fail_first_calls(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, failures: list[ServiceError], called: asyncio.Event | None = None
) -> list[ServiceError]:
    """Make the services fail as listed and then answer, and stop the run; return the failures that are left."""

    async def pins(*_: Any) -> dict[str, str]:
        if called is not None:
            called.set()
        if failures:
            raise failures.pop(0)
        run.service.stop()
        return {}

    monkeypatch.setattr(wiring, "pin_services", pins)
    return failures


async def test_services_that_are_unavailable_at_the_start_are_called_until_they_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path)
    left = fail_first_calls(run, monkeypatch, [Unavailable("down", retry_after_seconds=600.0) for _ in range(7)])
    async with asyncio.timeout(60):  # far below the 600 s that the services name
        await run.train()
    assert not left and run.service.status().saved_step == 0


async def test_a_stop_request_ends_the_wait_for_the_services_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path, rollouts__circuit_breaker__probe_seconds=600.0)
    called = asyncio.Event()
    left = fail_first_calls(run, monkeypatch, [Unavailable("down"), Unavailable("down")], called)
    training = asyncio.create_task(run.train())
    async with asyncio.timeout(60):
        await called.wait()
        run.service.stop()
        await training
    assert len(left) == 1 and run.service.status().phase is Phase.FINISHED and not run.folder.exists()


async def test_services_that_refuse_the_run_end_it_at_the_first_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path)
    left = fail_first_calls(run, monkeypatch, [InvalidRequest("no such mode"), InvalidRequest("no such mode")])
    with pytest.raises(ConfigurationError, match="the services cannot serve this run: no such mode"):
        await run.train()
    assert len(left) == 1


async def test_a_stop_request_ends_the_start_of_an_engine_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, ended = asyncio.Event(), asyncio.Event()

    class SlowEngine(torch_engine.TorchEngine):
        async def start(self) -> None:
            starting.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    monkeypatch.setattr(torch_engine, "TorchEngine", SlowEngine)
    run = SmallRun(tmp_path)
    training = asyncio.create_task(run.train())
    async with asyncio.timeout(60):
        await starting.wait()
        run.service.stop()
        await training
    assert ended.is_set() and run.service.status().phase is Phase.FINISHED and not run.folder.exists()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("is_signal", [True, False])
async def test_a_stop_ends_a_push_that_waits_and_the_resumed_run_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, is_signal: bool
) -> None:
    pushing = asyncio.Event()

    class WaitingEngine(torch_engine.TorchEngine):
        async def load_weights(self, weights: PublishedWeights) -> None:
            if weights.version == version:
                pushing.set()
                await asyncio.Event().wait()
            await super().load_weights(weights)

    whole = await SmallRun(tmp_path / "whole", steps=2).train()
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "TorchEngine", WaitingEngine)
        run = SmallRun(tmp_path / "parts", steps=2)
        training = asyncio.create_task(run.train())
        async with asyncio.timeout(60):
            await pushing.wait()
            if is_signal:
                run.service.stop_if(draining=True)
            else:
                run.service.stop()
            await training
    status = run.service.status()
    assert (status.phase, status.step, status.saved_step) == (Phase.FINISHED, version, version)
    assert run.fingerprints == whole.fingerprints[:version]
    resumed = await SmallRun(tmp_path / "parts", steps=2).train(resume=True)
    assert resumed.fingerprints == whole.fingerprints
