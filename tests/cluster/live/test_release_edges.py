"""A release under unusual conditions: drained nodes, an intruder, a second release, load, and its removal."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.live.client_pod import client_pod, metric, python_in, release_labels
from tests.cluster.live.conftest import ROOT, Release, run
from tests.cluster.live.releases import (
    COMPONENT,
    INSTANCE,
    MODEST,
    await_rollout,
    await_that,
    install,
    pod_names,
    pods,
)
from tests.cluster.live.steady_traffic import FIRST_TEST_WORLD, SteadyTraffic, steady_traffic
from tests.cluster.static.policy_evaluator import Pod, allowed

pytestmark = pytest.mark.timeout(600)
TWICE = ("retriever", "generator", "engine-searcher")
LONG_RUNNING = {*TWICE, "redis", "evaluator"}

# The second release: another world, no searcher, and a retriever that is scaled out under load.
NEIGHBOR = {
    **MODEST,
    "retriever.resources.requests.cpu": "50m",
    "storage.accessMode": "ReadWriteMany",
    "smallWorld.seed": 77,
    "smallWorld.trainWorlds": 1,
    "smallWorld.testWorlds": 1,
    "engines.searcher.kind": "none",
    "evaluator.enabled": False,
    "retriever.autoscaling.kind": "hpa",
    "retriever.autoscaling.maxReplicas": 2,
}

CONNECT = """
import concurrent.futures, json, socket
def reach(address):
    try:
        socket.create_connection(address, timeout=2).close()
        return True
    except OSError:
        return False
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(json.dumps(list(pool.map(reach, {addresses}))))
"""
ASK = """
import json, urllib.request
headers = {{"Content-Type": "application/json"}}
request = urllib.request.Request("http://{host}:8080{path}", data={body}, headers=headers)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def neighbor_release(replicated_release: Release) -> Iterator[Release]:
    """A second release in the same namespace; the last test of the module uninstalls it."""
    yield install(Release("other", replicated_release.namespace), NEIGHBOR)


@pytest.fixture(scope="module")
def unlabeled_pod(replicated_release: Release) -> Iterator[str]:
    """A pod in the namespace without any label of the release."""
    with client_pod(replicated_release, "intruder", labels={"who": "knows"}):
        yield "intruder"


class TestDrain:
    """The release's pods are drained from their node while requests arrive."""

    @pytest.fixture(scope="class")
    def running_traffic(self, replicated_release: Release) -> Iterator[SteadyTraffic]:
        with steady_traffic(replicated_release) as going_on:
            yield going_on

    def test_the_budget_keeps_the_last_pod_of_each_service(
        self, replicated_release: Release, running_traffic: SteadyTraffic
    ) -> None:
        before = {name: pod_names(replicated_release, name) for name in TWICE}
        with running_traffic.unharmed("kubectl drain"):
            with drained(replicated_release) as refusal:
                left = {name: pod_names(replicated_release, name) & before[name] for name in TWICE}
            await_rollout(replicated_release, *TWICE)
            await_rollout(replicated_release, "redis", kind="statefulset")
        assert "violate the pod's disruption budget" in refusal
        assert {name: len(names) for name, names in left.items()} == dict.fromkeys(TWICE, 1)
        assert all(len(pod_names(replicated_release, name)) == 2 for name in TWICE)


@contextmanager
def drained(release: Release) -> Iterator[str]:
    """Drain the release's pods from their node, yield kubectl's output, and uncordon the node."""
    (node,) = {pod["spec"]["nodeName"] for pod in pods(release, "retriever")}
    selector = f"{INSTANCE}={release.name},{COMPONENT} in ({','.join([*TWICE, 'redis'])})"
    command = ["kubectl", "drain", node, "--pod-selector", selector, "--delete-emptydir-data", "--ignore-daemonsets"]
    try:
        done = subprocess.run([*command, "--timeout=8s"], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0, done.stdout
        yield done.stdout + done.stderr
    finally:
        run("kubectl", "uncordon", node)


def test_an_unlabeled_pod_reaches_nothing_but_the_generator(replicated_release: Release, unlabeled_pod: str) -> None:
    """The rendered policies, the real network and the documented promise agree."""
    namespace = replicated_release.namespace
    policies = json.loads(replicated_release.kubectl("get", "networkpolicies", "--output", "json"))["items"]
    stranger = Pod(unlabeled_pod, {"who": "knows"}, namespace)
    targets = [
        (pod["metadata"]["labels"][COMPONENT], pod["status"]["podIP"], port["containerPort"], pod["metadata"]["labels"])
        for pod in pods(replicated_release)
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    ]
    assert {component for component, *_ in targets} == LONG_RUNNING
    addresses = [(address, port) for _, address, port, _ in targets]
    reached = python_in(replicated_release, unlabeled_pod, CONNECT.replace("{addresses}", repr(addresses)))
    computed = [
        allowed(policies, namespace, stranger, Pod(component, labels, namespace), port)
        for component, _, port, labels in targets
    ]
    seen = [
        (component, port, was_reached) for (component, _, port, _), was_reached in zip(targets, reached, strict=True)
    ]
    assert reached == computed, seen
    assert {(component, port) for component, port, was_reached in seen if was_reached} == {
        ("generator", 8080),
        ("generator", 9090),
    }


def test_an_unlabeled_pod_reaches_no_service_but_the_generator(replicated_release: Release, unlabeled_pod: str) -> None:
    services = json.loads(
        replicated_release.kubectl(
            "get", "services", "--selector", f"{INSTANCE}={replicated_release.name}", "-o", "json"
        )
    )
    addresses = [
        (service["metadata"]["name"], port["port"])
        for service in services["items"]
        for port in service["spec"]["ports"]
    ]
    reached = python_in(replicated_release, unlabeled_pod, CONNECT.replace("{addresses}", repr(addresses)))
    doors = {address for address, was_reached in zip(addresses, reached, strict=True) if was_reached}
    assert doors == {(f"two-generator{suffix}", port) for suffix in ("", "-headless") for port in (8080, 9090)}
    assert "rag" in ask(replicated_release, unlabeled_pod, "two-generator", "/v1/methods")["methods"]


def ask(release: Release, pod: str, host: str, path: str, body: object = None) -> dict:
    """Send a request to a service from a pod; returns the JSON of the answer."""
    encoded = repr(json.dumps(body).encode()) if body is not None else "None"
    return python_in(release, pod, ASK.format(host=host, path=path, body=encoded))


class TestNeighbors:
    """Two releases in one namespace."""

    @pytest.fixture(scope="class")
    def client_pods(self, replicated_release: Release, neighbor_release: Release) -> Iterator[dict[str, str]]:
        """A client pod of each release."""
        with (
            client_pod(replicated_release, "client-two", labels=release_labels(replicated_release, "job-client")),
            client_pod(replicated_release, "client-other", labels=release_labels(neighbor_release, "job-client")),
        ):
            pods_of = {"two": "client-two", "other": "client-other"}
            for name, pod in pods_of.items():  # network policies apply a moment after a pod's start
                code = CONNECT.replace("{addresses}", repr([(f"{name}-retriever", 8080)]))
                await_that(
                    lambda pod=pod, code=code: python_in(replicated_release, pod, code) == [True], 30, "a way in"
                )
            yield pods_of

    def test_each_answers_from_its_own_world(self, replicated_release: Release, client_pods: dict[str, str]) -> None:
        query = {"queries": ["Juniper Bank was founded by"], "top_k": 10, "filters": {"world": FIRST_TEST_WORLD}}
        found = {
            name: json.dumps(ask(replicated_release, pod, f"{name}-retriever", "/v1/search", query))
            for name, pod in client_pods.items()
        }
        assert "Helga Tanaka" in found["two"] and "Helga Tanaka" not in found["other"]
        assert found["other"].count('"rank"') == 10

    def test_neither_release_reaches_the_other(self, replicated_release: Release, client_pods: dict[str, str]) -> None:
        retrievers = [("two-retriever", 8080), ("other-retriever", 8080)]
        code = CONNECT.replace("{addresses}", repr(retrievers))
        assert python_in(replicated_release, client_pods["two"], code) == [True, False]
        assert python_in(replicated_release, client_pods["other"], code) == [False, True]


def test_an_autoscaler_adds_a_retriever_under_load(neighbor_release: Release, metrics_api: None) -> None:
    """The new pod also receives requests of clients that keep their connections."""

    def use() -> int | None:
        autoscaler = json.loads(neighbor_release.kubectl("get", "hpa", "other-retriever", "--output", "json"))
        current = autoscaler["status"].get("currentMetrics") or [{}]
        return current[0].get("resource", {}).get("current", {}).get("averageUtilization")

    await_that(lambda: use() is not None, 120, "the autoscaler sees the retriever's use of CPU")
    (first,) = pod_names(neighbor_release, "retriever")
    with steady_traffic(neighbor_release, {"searches": 30.0}) as traffic:
        (added,) = await_that(lambda: pod_names(neighbor_release, "retriever") - {first}, 240, "a second retriever")
        await_rollout(neighbor_release, "retriever")
        await_that(lambda: searches_of(neighbor_release, added) > 0, 120, "the new retriever is searched")
        assert traffic.totals().failures == []


def test_an_uninstalled_release_leaves_only_its_claim_and_the_other_release(
    replicated_release: Release, neighbor_release: Release, unlabeled_pod: str
) -> None:
    before, others = objects_of(neighbor_release), objects_of(replicated_release)
    assert {name.split("/")[0] for name in before} >= {"deployment.apps", "service", "configmap", "pod"}
    neighbor_release.helm("uninstall", neighbor_release.name, "--wait", "--timeout", "180s")
    await_that(lambda: len(objects_of(neighbor_release)) == 1, 60, "everything else is gone")
    assert objects_of(neighbor_release) == {"persistentvolumeclaim/other-data"}
    claim = json.loads(neighbor_release.kubectl("get", "persistentvolumeclaim", "other-data", "--output", "json"))
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert objects_of(replicated_release) == others
    assert "rag" in ask(replicated_release, unlabeled_pod, "two-generator", "/v1/methods")["methods"]


@pytest.fixture(scope="module")
def metrics_api(cluster: None) -> None:
    """The resource metrics API, started if the test cluster provides it."""
    kube = Path(os.environ.get("SEARCHRL_KUBE") or ROOT.parent / "shared" / "kube") / "kube"
    if subprocess.run(["kubectl", "top", "node"], capture_output=True).returncode and kube.is_file():
        subprocess.run([str(kube), "metrics", "up"], capture_output=True, timeout=120)
    if subprocess.run(["kubectl", "top", "node"], capture_output=True).returncode:
        pytest.skip("NO METRICS API: autoscaling is not tested. Install metrics-server on the cluster")


def searches_of(release: Release, pod: str) -> float:
    """The number of searches that a pod has answered."""
    return metric(release, pod, "searchrl_requests_total{", 'transport="grpc"', 'method="Search"')


def objects_of(release: Release) -> set[str]:
    """Every object with the release's label, of any kind, except those that the cluster derives from them."""
    kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith(("events", "endpoint", "pods.metrics")))
    found = release.kubectl(
        "get", wanted, "--selector", f"{INSTANCE}={release.name}", "--output", "name", "--ignore-not-found"
    )
    return set(found.split())
