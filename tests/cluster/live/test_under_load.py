"""Every request is answered while the release is upgraded, rolled back, loses pods, or loses Redis.

Questions and searches arrive from a pod in the cluster throughout; each test requires zero failed requests.
"""

from collections.abc import Iterator

import pytest

from tests.cluster.live.client_pod import metric
from tests.cluster.live.conftest import Release
from tests.cluster.live.releases import await_rollout, await_that, pod_names, pods, upgrade
from tests.cluster.live.steady_traffic import SteadyTraffic, steady_traffic

pytestmark = pytest.mark.timeout(600)
CHANGED = {"retriever.config.limits.default_top_k": 4, "generator.config.limits.max_top_k": 49}


@pytest.fixture(scope="module")
def running_traffic(replicated_release: Release) -> Iterator[SteadyTraffic]:
    with steady_traffic(replicated_release) as going_on:
        yield going_on


def test_an_upgrade_of_retriever_and_generator_fails_no_request(
    replicated_release: Release, running_traffic: SteadyTraffic
) -> None:
    before = {name: pod_names(replicated_release, name) for name in ("retriever", "generator", "engine-searcher")}
    with running_traffic.unharmed("helm upgrade"):
        upgrade(replicated_release, CHANGED)
        await_no_leavers(replicated_release)
    after = {name: pod_names(replicated_release, name) for name in before}
    assert not after["retriever"] & before["retriever"] and not after["generator"] & before["generator"]
    assert after["engine-searcher"] == before["engine-searcher"]


def test_a_rollback_fails_no_request(replicated_release: Release, running_traffic: SteadyTraffic) -> None:
    before = pod_names(replicated_release, "generator")
    with running_traffic.unharmed("helm rollback"):
        replicated_release.helm("rollback", replicated_release.name, "--wait", "--timeout", "300s")
        await_no_leavers(replicated_release)
    assert not pod_names(replicated_release, "generator") & before


@pytest.mark.parametrize("component", ["retriever", "generator", "engine-searcher"])
def test_a_deleted_pod_fails_no_request(
    replicated_release: Release, running_traffic: SteadyTraffic, component: str
) -> None:
    chosen = sorted(pod_names(replicated_release, component))[0]
    with running_traffic.unharmed(f"deletion of a pod of {component}"):
        replicated_release.kubectl("delete", "pod", chosen)
        await_rollout(replicated_release, component)
    assert chosen not in pod_names(replicated_release, component)


def test_a_killed_redis_fails_no_request(replicated_release: Release, running_traffic: SteadyTraffic) -> None:
    """Redis was in use before, its loss is noticed, and it is used again after its return."""
    (before,) = pods(replicated_release, "redis")
    await_use_of_redis(replicated_release)
    noticed = sum(each_retriever(replicated_release, "searchrl_retriever_cache_errors_total ").values())
    with running_traffic.unharmed("death of Redis"):
        replicated_release.kubectl("delete", "pod", before["metadata"]["name"], "--grace-period=0", "--force")
        await_that(
            lambda: (
                sum(each_retriever(replicated_release, "searchrl_retriever_cache_errors_total ").values()) > noticed
            ),
            30,
            "the loss is noticed",
        )
        await_rollout(replicated_release, "redis", kind="statefulset")
        await_use_of_redis(replicated_release)
    (after,) = pods(replicated_release, "redis")
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


def await_use_of_redis(release: Release) -> None:
    """Wait until every retriever uses Redis, which it does only after a successful probe."""

    def lookups() -> dict[str, float]:
        return each_retriever(release, "searchrl_retriever_cache_lookups_total{", 'layer="redis"')

    before = lookups()
    await_that(lambda: all(now > before[pod] for pod, now in lookups().items()), 60, "every retriever asks Redis")


def each_retriever(release: Release, *parts: str) -> dict[str, float]:
    """A metric of each retriever by its pod."""
    return {pod: metric(release, pod, *parts) for pod in pod_names(release, "retriever")}


def await_no_leavers(release: Release) -> None:
    """Wait for the old pods, which drain for a while after the new ones have taken over."""
    await_that(
        lambda: not any(pod["metadata"].get("deletionTimestamp") for pod in pods(release)),
        90,
        "the old pods are gone",
    )
