"""A pod that cannot start says why in one sentence, where ``kubectl describe pod`` shows it."""

from collections.abc import Iterator

import pytest

from tests.cluster.live.client_pod import create_pod
from tests.cluster.live.conftest import ROOT, Release
from tests.cluster.live.releases import COMPONENT, INSTANCE, MODEST, await_that, install, new_namespace, pods

pytestmark = pytest.mark.timeout(300)  # below the default: no wait here takes longer than 150 s

# What each pod lacks: the retriever its index, engine and generator the searcher's model, the evaluator its keys,
# Redis its image, because the name of that registry does not resolve.
LACKING = {
    **MODEST,
    "smallWorld.enabled": False,
    "workload.startupBudgetSeconds": 10,
    "retriever.index.name": "nowhere",
    "engines.searcher.model": "/data/models/nowhere",
    "engines.searcher.startupBudgetSeconds": 10,
    "auth.mode": "secret",
    "auth.existingSecret": "half",
    "redis.mode": "embedded",
    "redis.image.registry": "registry.invalid",
}
MISSING = {
    "retriever": "/data/indexes/nowhere/current",
    "engine-searcher": "/data/models/nowhere/config.json",
    "generator": "/data/models/nowhere/searcher.json",
    "evaluator": "/etc/searchrl/keys/keys",
}
NEXT_STEPS = ("Put it there", "write a list of {name, key, scope} into it")


@pytest.fixture(scope="module")
def incomplete_release(cluster: None) -> Iterator[Release]:
    """A release without an index, without a model, and whose Secret has no keys."""
    with new_namespace() as namespace:
        release = Release("lacking", namespace)
        release.kubectl("create", "secret", "generic", "half", "--from-literal=client-key=sixteen-characters-long")
        yield install(release, LACKING, wait=False)


@pytest.mark.parametrize("component", sorted(MISSING))
def test_a_pod_without_its_files_reports_what_is_missing(incomplete_release: Release, component: str) -> None:
    message = await_that(lambda: termination_message(incomplete_release, component), 120, f"{component} gives up")
    assert MISSING[component] in message and any(step in message for step in NEXT_STEPS)
    assert len(message.splitlines()) == 1, message


def test_an_image_whose_registry_is_unreachable_is_named(incomplete_release: Release) -> None:
    """The message comes from the kubelet; docs/operations/troubleshooting.md has a section on the reason."""
    reason, message = await_that(lambda: waiting(incomplete_release, "redis"), 60, "the kubelet says why it waits")
    assert reason in ("ErrImagePull", "ImagePullBackOff") and "registry.invalid/valkey/valkey" in message
    assert "ImagePullBackOff" in (ROOT / "docs" / "operations" / "troubleshooting.md").read_text()


def waiting(release: Release, component: str) -> tuple[str, str] | None:
    """Reason and message of a waiting container, once the kubelet reports more than that it is being created."""
    for pod in pods(release, component):
        for container in pod["status"].get("containerStatuses", []):
            state = container["state"].get("waiting", {})
            if "message" in state:
                return state["reason"], state["message"]
    return None


FILL = """
set -e
python -m searchrl.jobs.small_world_data --data /tmp --train-worlds 1 --test-worlds 1
python -m services.retriever.build_index --corpus /tmp/corpora/small-world/corpus.jsonl --output /small/index
"""


def test_a_step_whose_volume_is_full_reports_it(incomplete_release: Release) -> None:
    """An index of 1 MB does not fit into 256 kB."""
    small = {"emptyDir": {"medium": "Memory", "sizeLimit": "256Ki"}}
    labels = {COMPONENT: "full", INSTANCE: incomplete_release.name}
    create_pod(
        incomplete_release, "full", image="localhost/searchrl/retriever:dev", command=["sh", "-c", FILL],
        labels=labels, volumes={"/small": small},
    )  # fmt: skip
    message = await_that(lambda: termination_message(incomplete_release, "full"), 120, "the build gives up")
    assert message.startswith("build_index: no space left for a new index in /small/index; free space or enlarge")
    assert len(message.splitlines()) == 1, message


def termination_message(release: Release, component: str) -> str:
    """The termination message of the component's first container that ended with an error."""
    for pod in pods(release, component):
        status = pod["status"]
        for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            for state in (container["state"], container["lastState"]):
                ended = state.get("terminated")
                if ended and ended["exitCode"] != 0:
                    return ended.get("message", "")
    return ""
