"""The learner's thread: an error ends only the job that raised it, is counted, and shows in the probes."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from searchrl.errors import ServiceError, Unavailable
from searchrl.platform.health import Health
from services.trainer import learner_thread
from services.trainer.engines import ENGINES
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.learner.trained_model import TrainingDiverged
from services.trainer.learner_thread import LearnerModels, LearnerThread, RankedModels
from services.trainer.wiring import read_profile
from tests.fakes.small_run import run_config


class NativePanic(BaseException):
    """Like what extensions written in Rust raise; it is not an Exception."""


class Watched:
    """A learner thread with scripted models, its health and its count of failures."""

    def __init__(self) -> None:
        self.failures = 0
        self.health = Health()
        self.health.set_ready()
        unread: Any = None
        self.thread = LearnerThread(unread, unread, health=self.health, count=self._count)

    def _count(self) -> None:
        self.failures += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(learner_thread, "open_models", lambda *_: SimpleNamespace(close=lambda: None))
    watched = Watched()
    yield watched
    watched.thread.close()


def raising(error: BaseException) -> Any:
    def job(_models: object) -> None:
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError("CUDA out of memory"), MemoryError),  # the run ends with the real cause
        (TrainingDiverged("not finite"), TrainingDiverged),
        (NativePanic("secret"), ServiceError),  # would end the event loop
        (SystemExit(3), ServiceError),
    ],
)
async def test_a_failed_job_is_raised_and_counted_and_ends_readiness(
    watched: Watched, error: BaseException, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(raised) as caught:
        await watched.thread.run(raising(error))
    assert type(caught.value) is raised
    assert (watched.failures, watched.health.ready, watched.health.alive) == (1, False, True)
    assert caplog.records[-1].exc_info and caplog.records[-1].exc_info[1] is error
    for _ in range(2):  # the second job starts after the first has been counted as a success
        assert await watched.thread.run(lambda _models: 7) == 7
    assert watched.health.ready


async def test_an_expected_error_is_raised_whatever_caused_it(watched: Watched) -> None:
    error = Unavailable("a learner rank died")
    error.__cause__ = OSError("connection reset")
    with pytest.raises(Unavailable, match="a learner rank died"):
        await watched.thread.run(raising(error))


async def test_a_closed_thread_refuses_jobs(watched: Watched) -> None:
    watched.thread.close()
    with pytest.raises(ServiceError, match="learner is closed"):
        await watched.thread.run(lambda _models: 7)


class InProcess:
    """One rank in the test's own process."""

    def __init__(self, models: LearnerModels) -> None:
        self.models = models

    def run(self, job: Any, *arguments: object) -> list[Any]:
        return [job(self.models, *arguments)]


def test_ranks_publish_the_adapter_that_one_process_publishes(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = run_config(tmp_path, learner__adapter={"kind": "lora", "rank": 8})
    engine = VllmEngineSettings.model_validate({"weight_transfer": {"backend": "lora_adapter"}})
    config = config.model_copy(update={"engine": engine})
    profile = read_profile(config)
    models = LearnerModels.load(config, profile)
    actors: Any = InProcess(models)
    folder = config.output / learner_thread.PUBLISHED
    folder.mkdir(parents=True)
    ranked = RankedModels(config, profile, actors)
    for version in (1, 2):
        one, ranks = models.publish(version), ranked.publish(version)
        for name in ("fingerprint", "probe", "adapter_config"):
            assert getattr(one, name) == getattr(ranks, name)
        assert one.probe is not None and one.adapter_config is not None
        assert all(".lora_" in name for name in one.tensors)
        assert all(torch.equal(tensor, ranks.tensors[name]) for name, tensor in one.tensors.items())
    assert [path.name for path in folder.iterdir()] == ["version-2"]


@pytest.mark.parametrize("kind", ["torch", "vllm"])
async def test_weights_for_servers_carry_the_learners_scores_of_fixed_tokens(kind: str, tmp_path: Path) -> None:
    _, settings = ENGINES[kind]
    config = run_config(tmp_path).model_copy(update={"engine": settings()})
    models = LearnerModels.load(config, read_profile(config))
    probe = models.publish(3).probe
    assert (probe is None) == (kind == "torch")
    if probe is not None:
        with torch.inference_mode():
            logits = models.learners.policy.model(torch.tensor([probe.ids])).logits[0, :-1]
        scores = torch.log_softmax(logits, -1).gather(1, torch.tensor(probe.ids[1:])[:, None])[:, 0]
        assert scores.tolist() == pytest.approx(probe.logprobs, abs=1e-4)
        assert len(probe.ids) > 8
