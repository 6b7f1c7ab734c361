"""Ranks as Ray actors: jobs run in all of them, the first error ends a job at once, and a disk that is not shared is
refused."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from searchrl.agent.profile import SearcherProfile
from searchrl.errors import ConfigurationError, Unavailable
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.ranks import STEP_SECONDS, Ranks, join_ranks
from services.trainer.learner_thread import RankedModels, check_shared_disk

ray = pytest.importorskip("ray")


def test_a_rank_waits_in_a_collective_as_long_as_a_step_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[tuple[object, dict[str, Any]]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: groups.append((backend, options)))
    for device in ("cpu", "cuda"):
        join_ranks(Ranks(), dist.HashStore(), device)  # pyright: ignore[reportPrivateImportUsage]
    assert [options["timeout"].total_seconds() for _, options in groups] == [STEP_SECONDS] * 2
    assert [backend for backend, _ in groups] == ["gloo", "cpu:gloo,cuda:nccl"]


@pytest.mark.parametrize(
    ("errors", "raised", "sentence"),
    [
        (["ActorDiedError"], Unavailable, "a learner rank died: "),
        (["ActorUnavailableError"], Unavailable, "the connection to a learner rank failed: .*reset"),
        (["ObjectLostError"], Unavailable, "the connection to a learner rank failed: Failed to retrieve"),
        ([], Unavailable, "a learner rank did not answer within 3 s"),
        (["peer", "ActorDiedError"], Unavailable, "a learner rank died: "),  # the death is the cause
        (["peer", "configuration", "ActorDiedError"], ConfigurationError, "does not fit"),
        (["peer", "disk"], OSError, "No space left"),
    ],
)
def test_of_the_errors_of_several_ranks_the_cause_is_raised(
    monkeypatch: pytest.MonkeyPatch, errors: list[str], raised: type[Exception], sentence: str
) -> None:
    from ray import exceptions

    from services.trainer.learner import ray_ranks

    def failed(cause: Exception) -> Exception:
        return exceptions.RayTaskError("run", "", cause)

    made: dict[str, Exception] = {
        "ActorDiedError": exceptions.ActorDiedError(),
        "ActorUnavailableError": exceptions.ActorUnavailableError("connection reset", None),
        "ObjectLostError": exceptions.ObjectLostError("ab" * 28, None, ""),
        "peer": failed(RuntimeError("connection closed by peer")),
        "configuration": failed(ConfigurationError("does not fit")),
        "disk": failed(OSError(28, "No space left on device")),
    }

    def get(name: str) -> None:
        raise made[name]

    def wait(calls: list[str], num_returns: int = 1, timeout: float = 0) -> tuple[list[str], list[str]]:
        return (calls[:num_returns], calls[num_returns:]) if errors else ([], calls)

    monkeypatch.setattr(ray_ranks, "ray", SimpleNamespace(get=get, wait=wait))
    with pytest.raises(raised, match=sentence):
        ray_ranks.collect(errors or ["hangs"], seconds=3)


@pytest.fixture(scope="module")
def actors() -> Iterator[Any]:
    from services.trainer.learner.ray_ranks import RayRanks

    ray.init(num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield lambda: RayRanks.start(LearnerSettings(ranks=2), lambda ranks: ranks)
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jobs_run_in_every_rank_and_a_failed_or_killed_rank_ends_them_at_once(actors: Any) -> None:
    two = actors()
    assert two.run(lambda ranks, value: (ranks.rank, ranks.gather(value + ranks.rank)), 5) == [(0, [5, 6]), (1, [5, 6])]

    def fail(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise ConfigurationError("rank 1 cannot do this")
        ranks.wait()

    started = time.monotonic()
    with pytest.raises(ConfigurationError, match="rank 1 cannot do this"):
        two.run(fail)
    assert time.monotonic() - started < STEP_SECONDS / 10  # the other rank would wait that long

    def die(ranks: Ranks) -> None:
        if ranks.rank == 1:
            os.kill(os.getpid(), 9)
        ranks.wait()

    fresh = actors()
    with pytest.raises(Unavailable, match="a learner rank died"):
        fresh.run(die)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_more_ranks_than_this_machine_has_cpus_for_are_refused_at_once(actors: Any) -> None:
    from services.trainer.learner.ray_ranks import RayRanks

    with pytest.raises(ConfigurationError, match=r"lacks 2 CPUs: it has .* 4 CPUs, and this run needs 3 learner ranks"):
        RayRanks.start(LearnerSettings(ranks=3, threads=2), lambda ranks: ranks)


def test_a_rank_that_does_not_see_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("this run")
    check_shared_disk(tmp_path / "token", "this run", Ranks(1, 2))
    for file, token in ((tmp_path / "token", "another run"), (tmp_path / "absent" / "token", "this run")):
        with pytest.raises(ConfigurationError, match=r"learner rank 1 on .* does not see the run folder"):
            check_shared_disk(file, token, Ranks(1, 2))


@pytest.mark.parametrize("found", [None, b"part"])
def test_a_checkpoint_whose_parts_did_not_arrive_is_refused(tmp_path: Path, found: bytes | None) -> None:
    from tests.fakes.small_run import run_config

    class Actors:
        def run(self, *_: object) -> list[dict[str, int]]:
            return [{}, {"learner/__1_0.distcp": 10}]

    actors: Any = Actors()
    models = RankedModels(run_config(tmp_path / "run"), SearcherProfile(), actors)
    (tmp_path / "learner").mkdir()
    if found is not None:
        (tmp_path / "learner" / "__1_0.distcp").write_bytes(found)
    with pytest.raises(ConfigurationError, match=r"__1_0.distcp, which learner rank 1 wrote, is not complete"):
        models.save(tmp_path)
    (tmp_path / "learner" / "__1_0.distcp").write_bytes(b"ten bytes.")
    models.save(tmp_path)
