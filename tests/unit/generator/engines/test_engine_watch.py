"""The watch of an engine: failures in a row take readiness away, and a successful probe restores it."""

import asyncio
import sys
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServiceError, Unavailable
from searchrl.model_server.settings import VllmSettings
from searchrl.model_server.vllm_server import VllmServer
from searchrl.platform.health import Health
from searchrl.platform.request_context import deadline, remaining_seconds
from services.generator.engines.engine_watch import FAILURES_BEFORE_PROBE, EngineWatch
from services.generator.engines.openai import OpenAIEngine
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.engines.upstream_http import EngineMisconfigured
from services.generator.judging.judge import JudgeSettings
from services.generator.settings import GeneratorSettings
from services.generator.wiring import build_service
from tests.fakes.openai_stub import ModalLLM, serving

BROKEN = EngineMisconfigured("the engine refused the configured key; the engine answered 401: no")


class Probe:
    """Returns or raises the outcomes one by one, and repeats the last one."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if outcome is not None:
            raise outcome


def watched(*outcomes: Exception | None) -> tuple[EngineWatch, Health, Probe, asyncio.Queue[bool]]:
    health, probe = Health(), Probe(*outcomes)
    health.set_ready()
    changes: asyncio.Queue[bool] = asyncio.Queue()
    health.subscribe(changes.put_nowait)
    changes.get_nowait()
    return EngineWatch("generator", probe, health, first_pause_seconds=0.001), health, probe, changes


async def until(changes: asyncio.Queue[bool], ready: bool) -> None:
    while await asyncio.wait_for(changes.get(), 5) is not ready:
        pass


async def test_an_engine_that_refuses_at_start_is_the_reason_of_readiness_until_it_answers() -> None:
    watch, health, _, changes = watched(BROKEN, BROKEN, None)
    await watch.start()
    assert not health.ready
    assert health.reason == "generator: the engine refused the configured key; the engine answered 401: no"
    await until(changes, True)
    await watch.stop()
    assert health.reason == "ok"


async def test_a_probe_that_breaks_is_not_the_last_one() -> None:
    watch, health, _, changes = watched(BROKEN, RuntimeError("a bug"), None)
    await watch.start()
    await until(changes, True)
    await watch.stop()
    assert health.reason == "ok"


@pytest.mark.parametrize("error", [BROKEN, Unavailable("gone"), InvalidRequest("System role not supported")])
async def test_failures_in_a_row_let_the_watch_probe_the_engine(error: ServiceError) -> None:
    watch, health, probe, changes = watched(error)
    for _ in range(FAILURES_BEFORE_PROBE - 1):
        watch.record(error)
    watch.record(None)
    for _ in range(FAILURES_BEFORE_PROBE - 1):
        watch.record(error)
    await asyncio.sleep(0)
    assert probe.count == 0
    watch.record(error)
    await until(changes, False)
    await watch.stop()
    assert str(error) in health.reason


async def test_failures_during_the_first_probe_start_no_second_task() -> None:
    """A second one would replace the first, and probe for ever."""
    may_end = asyncio.Event()

    async def probe() -> None:
        await may_end.wait()
        raise BROKEN

    watch = EngineWatch("generator", probe, Health())
    starting = asyncio.create_task(watch.start())
    await asyncio.sleep(0)
    for _ in range(FAILURES_BEFORE_PROBE):
        watch.record(BROKEN)
    may_end.set()
    await starting
    await watch.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_requests_that_no_engine_would_accept_do_not_end_readiness() -> None:
    watch, health, probe, _ = watched(None)
    for _ in range(FAILURES_BEFORE_PROBE):
        watch.record(InvalidRequest("the prompt is too long"))
    while not probe.count:
        await asyncio.sleep(0)
    await watch.stop()
    assert health.ready


async def test_the_deadline_of_the_request_that_caused_a_probe_does_not_end_the_probes() -> None:
    health, answers = Health(), [BROKEN, None]
    health.set_ready()

    async def probe() -> None:
        if remaining_seconds() == 0:
            raise DeadlineExceeded("the engine did not answer in time")
        if (error := answers.pop(0)) is not None:
            raise error

    watch = EngineWatch("generator", probe, health, first_pause_seconds=0.001)
    changes: asyncio.Queue[bool] = asyncio.Queue()
    health.subscribe(changes.put_nowait)
    with deadline(0.0):
        for _ in range(FAILURES_BEFORE_PROBE):
            watch.record(BROKEN)
    await until(changes, False)
    await until(changes, True)
    await watch.stop()
    assert health.reason == "ok"


async def test_an_overload_is_no_failure() -> None:
    watch, _, probe, _ = watched(BROKEN)
    for _ in range(3 * FAILURES_BEFORE_PROBE):
        watch.record(Overloaded("later"))
    await asyncio.sleep(0)
    assert probe.count == 0


async def test_an_engine_that_failed_and_is_overloaded_now_is_ready_again() -> None:
    watch, health, probe, changes = watched(BROKEN, Overloaded("later"))
    await watch.start()
    assert not health.ready
    await until(changes, True)
    await watch.stop()
    assert (health.reason, probe.count) == ("ok", 2)


async def test_one_engines_recovery_does_not_hide_the_other() -> None:
    watch, health, _, _ = watched(BROKEN)
    judge = EngineWatch("judge", Probe(BROKEN), health)
    await watch.start()
    await judge.start()
    health.set_working("generator")
    assert not health.ready
    assert health.reason.startswith("judge: ")
    await watch.stop()
    await judge.stop()


@pytest.mark.parametrize("kind", ["url", "vllm"])
async def test_nothing_probes_an_engine_whose_connections_are_closed(
    kind: Literal["url", "vllm"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    for owner, method in ((EngineWatch, "stop"), (VllmServer, "stop"), (OpenAIEngine, "close"), (UpstreamApi, "close")):

        async def record(_: object, name: str = owner.__name__) -> None:
            stopped.append(name)

        monkeypatch.setattr(owner, method, record)
    vllm = VllmSettings(executable=Path(sys.executable), model="tiny", log_file=tmp_path / "vllm.log")
    engine = ChatEngineSettings(kind=kind, base_url="http://127.0.0.1:9", model="tiny", vllm=vllm)
    await build_service(GeneratorSettings(engine=engine), CollectorRegistry()).stop()
    supervised = ["VllmServer"] if kind == "vllm" else []
    assert stopped == ["EngineWatch", *supervised, "OpenAIEngine", "UpstreamApi"]


async def test_a_service_whose_judge_is_misconfigured_says_which_engine_and_why() -> None:
    async with serving(ModalLLM("gemma")) as good, serving(ModalLLM("no_model")) as bad:
        settings = GeneratorSettings(
            engine=ChatEngineSettings(kind="url", base_url=good, model="stub-model"),
            judge=JudgeSettings(engine=ChatEngineSettings(kind="url", base_url=bad, model="stub-model")),
        )
        parts = build_service(settings, CollectorRegistry())
        await parts.start()
        parts.health.set_ready()
        reason = parts.health.reason
        answer = await parts.generations.answer_from_context("Who?", [])
        await parts.stop()
    assert reason.startswith("judge: the engine does not serve this model at this address; the engine answered 404")
    assert answer.text == "Rome"
