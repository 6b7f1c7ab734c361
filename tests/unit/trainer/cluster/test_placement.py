"""The places of a run in a Ray cluster: reserved together, and refused with what is missing."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from searchrl.errors import ConfigurationError, Unavailable
from services.trainer.cluster.placement import Place, RunPlacement, find_shortage

RANK = Place("learner rank", 1, 1)
SERVER = Place("vLLM server", 1, 2)


@pytest.mark.parametrize(
    ("places", "nodes", "sentence"),
    [
        ([RANK] * 2, [{"CPU": 8.0, "GPU": 2.0}], ""),
        ([RANK, SERVER], [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}], ""),
        (
            [RANK] * 4 + [SERVER],
            [{"CPU": 4.0, "GPU": 2.0}],
            "the Ray cluster lacks 4 GPUs and 1 CPU: it has 2 GPUs and 4 CPUs, and this run needs 4 learner ranks of "
            "1 GPU and 1 CPU each and 1 vLLM server of 2 GPUs and 1 CPU",
        ),
        ([Place("learner rank", 2)] * 2, [{"CPU": 3.0}], "the Ray cluster lacks 1 CPU: it has 0 GPUs and 3 CPUs, and "
         "this run needs 2 learner ranks of 2 CPUs each"),
        # enough in all, but a server's GPUs must be in one machine
        ([SERVER], [{"CPU": 8.0, "GPU": 1.0}] * 4, "no node of the Ray cluster has the 2 GPUs and 1 CPU of one vLLM "
         "server"),
    ],
)  # fmt: skip
def test_what_a_cluster_lacks_is_named_in_one_sentence(
    places: list[Place], nodes: list[Mapping[str, float]], sentence: str
) -> None:
    assert find_shortage(places, nodes) == sentence


class Cluster:
    """A scripted Ray session, and what was asked of it."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = [{"Alive": True, "Resources": {"CPU": 4.0}}]
        self.groups: list[list[dict[str, int]]] = []
        self.removed = 0
        self.shutdowns = 0
        self.is_free = True

    def reserve(self, bundles: list[dict[str, int]], strategy: str) -> Any:
        assert strategy == "SPREAD"
        self.groups.append(bundles)
        return SimpleNamespace(wait=lambda _seconds: self.is_free)

    def remove(self, _group: object) -> None:
        self.removed += 1

    def shut_down(self) -> None:
        self.shutdowns += 1


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    ray = pytest.importorskip("ray")

    scripted = Cluster()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: scripted.nodes)
    monkeypatch.setattr(ray, "shutdown", scripted.shut_down)
    monkeypatch.setattr(ray.util, "placement_group", scripted.reserve)
    monkeypatch.setattr(ray.util, "remove_placement_group", scripted.remove)
    yield scripted


def test_ranks_and_servers_share_one_group_and_the_last_of_them_leaves_the_session(cluster: Cluster) -> None:
    placement = RunPlacement([Place("learner rank", 1)] * 2, [Place("vLLM server", 2)])
    placement.reserve()
    placement.reserve()
    assert cluster.groups == [[{"CPU": 1}, {"CPU": 1}, {"CPU": 2}]]
    bundles = [placement.rank(1), placement.server(0)]
    assert [options["scheduling_strategy"].placement_group_bundle_index for options in bundles] == [1, 2]
    assert [options["num_cpus"] for options in bundles] == [1, 2]
    placement.release()
    assert not cluster.shutdowns
    placement.release()
    assert cluster.shutdowns == 1


def test_a_machine_that_is_too_small_is_refused_before_anything_is_reserved(cluster: Cluster) -> None:
    cluster.nodes.append({"Alive": False, "Resources": {"CPU": 64.0}})
    with pytest.raises(ConfigurationError, match="lacks 1 CPU: it has 0 GPUs and 4 CPUs"):
        RunPlacement([Place("learner rank", 1)] * 5).reserve()
    assert not cluster.groups


def test_a_cluster_may_grow_and_is_refused_when_it_does_not(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    RunPlacement([Place("learner rank", 1)] * 5).reserve()
    cluster.is_free = False
    with pytest.raises(Unavailable, match="lacks 1 CPU"):
        RunPlacement([Place("learner rank", 1)] * 5).reserve()
    with pytest.raises(Unavailable, match="did not free 2 learner ranks of 1 CPU each within 300 s"):
        RunPlacement([Place("learner rank", 1)] * 2).reserve()
    assert cluster.removed == 2
