"""Pods land where their devices are, spread over zones, and report why if they cannot; on nodes without machines."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from searchrl.cli.main import run as searchrl
from searchrl.jobs.cluster import Cluster
from tests.cluster.live.cluster_objects import Json, create, evict
from tests.cluster.live.conftest import CHART, ROOT, Release, run
from tests.cluster.live.fake_machines import (
    CPU_NODES,
    FAKE,
    GPU_NODES,
    MIG_NODE,
    TOLERATION,
    ZONES,
    fake_nodes,
    machine_without_kubelet,
    report_end,
)
from tests.cluster.live.releases import await_that, new_namespace, pods, settings
from tests.cluster.static.chart_rendering import values_of

pytestmark = pytest.mark.timeout(300)  # below the default: no wait here takes longer than 150 s

CLAIM = "placed"
# The model's path counts as present, so nothing is fetched; the volume has no machine behind it.
PLACED: dict[str, object] = {
    "workload.nodeSelector": {FAKE: "true"},
    "workload.tolerations": [TOLERATION],
    "storage.existingClaim": CLAIM,
    "engines.generator.model": "/data/models/llm",
    "monitoring.podMonitors.enabled": False,
    "monitoring.rules.enabled": False,
}
COMPONENT = "app.kubernetes.io/component"


def on_spot_nodes(label: str) -> list[str]:
    """Arguments of ``searchrl submit`` for nodes with this label."""
    return ["--claim", CLAIM, "--node-selector", f"{label}=true", "--toleration", TOLERATION["key"]]


ON_SPOT = on_spot_nodes(FAKE)


@pytest.fixture(scope="module")
def namespace(cluster: None) -> Iterator[str]:
    """A namespace with a claim that every node can mount, and nodes to place pods on."""
    pytest.importorskip("kubernetes")
    with fake_nodes(), new_namespace() as name:
        volume = f"{CLAIM}-{name}"
        create(name, claim(CLAIM, volume, "ReadWriteMany"), persistent(volume, name, CLAIM))
        try:
            yield name
        finally:
            run("kubectl", "delete", "persistentvolume", volume, "--wait=false")


@pytest.fixture(scope="module", autouse=True)
def job_on_lost_machine(namespace: str) -> Cluster:
    """A job whose machine has disappeared without notice; its node is deleted, as a cloud's controller does.

    Used by every test (autouse), so that it happens first: Kubernetes takes over a minute to replace the pod, during
    which the other tests run. The last test of the module checks the outcome.
    """
    label = "searchrl.io/lost"
    node = f"lost-{namespace}"  # a new name: the cluster may still remember a node of an earlier run
    machine_without_kubelet(node, {label: "true"})
    try:
        submit = ["submit", "train", "--run-id", "lost", "--retries", "0", *on_spot_nodes(label), "-n", namespace]
        assert searchrl(submit) == 0
        cluster = Cluster.connect(namespace=namespace)
        first = await_that(lambda: placed_pod(cluster, "lost", ""), 30, "a first pod")
        assert first["spec"]["nodeName"] == node
        run("kubectl", "label", "node", CPU_NODES[0], f"{label}=true")
    finally:
        run("kubectl", "delete", "node", node)
    return cluster


def claim(name: str, volume: str, mode: str) -> Json:
    """A claim bound to one volume by name, so that no provisioner serves it."""
    spec = {"accessModes": [mode], "storageClassName": "", "volumeName": volume}
    spec["resources"] = {"requests": {"storage": "1Gi"}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def persistent(volume: str, namespace: str, name: str, node: str = "") -> Json:
    """A volume that every node can mount, or only ``node``."""
    spec: Json = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
        "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": namespace, "name": name},
        "nfs": {"server": "storage.invalid", "path": "/"},
    }
    if node:
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec}


@contextmanager
def placed(namespace: str, preset: str, **values: object) -> Iterator[Release]:
    """Install a preset; at the end uninstall it and wait until its pods have freed their devices."""
    release = Release(preset.replace("+", "-"), namespace)
    merged = PLACED | {name.replace("__", "."): value for name, value in values.items()}
    release.helm("install", release.name, str(CHART), *values_of(preset), *settings(merged))
    try:
        yield release
    finally:
        release.helm("uninstall", release.name)
        await_that(lambda: not pods(release), 60, "the release's pods are gone")


def nodes_of(release: Release, count: int) -> dict[str, list[str]]:
    """The nodes of each component's pods, once ``count`` pods run."""

    def running() -> list[Json]:
        return [pod for pod in pods(release) if pod["status"]["phase"] == "Running"]

    await_that(lambda: len(running()) >= count, 60, f"{count} pods of {release.name} run")
    found: dict[str, list[str]] = {}
    for pod in running():
        found.setdefault(pod["metadata"]["labels"][COMPONENT], []).append(pod["spec"]["nodeName"])
    return {component: sorted(nodes) for component, nodes in found.items()}


def test_gpu_pods_land_on_gpu_nodes_spread_over_zones_and_others_do_not(namespace: str) -> None:
    with placed(namespace, "gpu-prod") as release:
        found = nodes_of(release, 10)
    assert found["engine-generator"] == found["engine-searcher"] == sorted(GPU_NODES)
    assert {ZONES[node] for node in GPU_NODES} == {"zone-a", "zone-b"}
    for component in ("retriever", "generator"):
        assert found[component] == sorted(CPU_NODES)
    assert {*found["evaluator"], *found["redis"]} <= set(CPU_NODES)


def test_pods_that_read_storage_of_one_node_run_on_its_gpu_node(namespace: str) -> None:
    with placed(namespace, "gpu-single") as release:
        found = nodes_of(release, 5)
    # The partitioned GPU has the same labels, but none of the devices.
    (node,) = found["engine-generator"]
    assert node in GPU_NODES
    assert found["retriever"] == found["generator"] == found["evaluator"] == [node]
    assert set(found["redis"]) <= set(CPU_NODES)


def test_slices_land_on_the_partitioned_gpu_and_nothing_else_does(namespace: str) -> None:
    with placed(namespace, "mig") as release:
        found = nodes_of(release, 10)
    assert found["engine-generator"] == found["engine-searcher"] == [MIG_NODE] * 2
    assert MIG_NODE not in {node for name, nodes in found.items() if not name.startswith("engine") for node in nodes}


def test_engines_go_to_spot_nodes_and_the_generator_does_not(namespace: str) -> None:
    """All fake nodes are spot nodes: pods without the toleration wait for an ordinary node."""
    with placed(namespace, "gpu-prod+spot", workload__tolerations=[]) as release:
        found = nodes_of(release, 4)
        waiting = {pod["metadata"]["labels"][COMPONENT] for pod in pods(release) if not pod["spec"].get("nodeName")}
    assert found == {"engine-generator": sorted(GPU_NODES), "engine-searcher": sorted(GPU_NODES)}
    assert waiting == {"retriever", "generator", "evaluator", "redis"}


# What keeps an engine from being scheduled: values, and the event that docs/operations/troubleshooting.md explains.
STOPPED: dict[str, tuple[dict[str, object], str]] = {
    "more GPUs than any node has": (
        {"engines__generator__gpu__count": 8, "engines__generator__vllm__tensorParallelSize": 8},
        "Insufficient nvidia.com/gpu",
    ),
    "time slices where GPUs are not shared": (
        {"engines__generator__gpu__profile": "shared"},
        "Insufficient nvidia.com/gpu.shared",
    ),
    "a taint that is not tolerated": ({"workload__tolerations": []}, "had untolerated taint"),
    "a label that no node has": (
        {"workload__nodeSelector": {FAKE: "true", "nvidia.com/gpu.product": "none"}},
        "didn't match Pod's node affinity/selector",
    ),
}


@pytest.mark.parametrize(("values", "words"), STOPPED.values(), ids=list(STOPPED))
def test_an_engine_that_fits_on_no_node_reports_why(namespace: str, values: dict[str, object], words: str) -> None:
    with placed(namespace, "gpu-prod", **values) as release:
        await_that(lambda: words in unschedulable(release, "engine-generator"), 30, f"the scheduler says: {words}")
    assert words in troubleshooting()


def unschedulable(release: Release, component: str) -> str:
    """The scheduler's message about the first pod of a component that it cannot place."""
    for pod in pods(release, component):
        for condition in pod["status"].get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return condition["message"]
    return ""


def troubleshooting() -> str:
    """The text of docs/operations/troubleshooting.md without line breaks."""
    return " ".join((ROOT / "docs" / "operations" / "troubleshooting.md").read_text().split())


def test_a_volume_of_another_node_is_reported(namespace: str) -> None:
    words = "didn't match PersistentVolume's node affinity"
    volume = f"elsewhere-{namespace}"
    create(namespace, claim("elsewhere", volume, "ReadWriteOnce"), persistent(volume, namespace, "elsewhere", "node-1"))
    try:
        bound = "jsonpath={.status.phase}=Bound"
        run("kubectl", "--namespace", namespace, "wait", f"--for={bound}", "pvc/elsewhere", "--timeout=60s")
        with placed(namespace, "gpu-single", storage__existingClaim="elsewhere") as release:
            await_that(lambda: words in unschedulable(release, "engine-generator"), 30, f"the scheduler says: {words}")
    finally:
        run("kubectl", "delete", "persistentvolume", volume, "--wait=false")
    assert words in troubleshooting()


def test_a_quota_stops_an_engine_and_a_job_with_its_name_and_numbers(namespace: str) -> None:
    hard = {"requests.nvidia.com/gpu": "0"}
    quota: Json = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}, "spec": {"hard": hard}}
    create(namespace, quota)
    try:
        counted = r"jsonpath={.status.hard.requests\.nvidia\.com/gpu}=0"
        run("kubectl", "--namespace", namespace, "wait", f"--for={counted}", "quota/gpus", "--timeout=30s")
        with placed(namespace, "gpu-prod") as release:
            message = await_that(lambda: failure_of(release, "engine-generator"), 30, "the Deployment says so")
        assert searchrl(["submit", "train", "--run-id", "quota", "--gpus", "1", *ON_SPOT, "-n", namespace]) == 0
        job = Cluster.connect(namespace=namespace).newest("quota")
        refused = await_that(lambda: events(namespace, job.name, "FailedCreate"), 30, "the job's event")
        assert searchrl(["runs", "stop", "quota", "--delete", "-n", namespace]) == 0
    finally:
        run("kubectl", "--namespace", namespace, "delete", "quota", "gpus")
    for text, count in ((message, 2), (refused, 1)):
        assert (
            f"exceeded quota: gpus, requested: requests.nvidia.com/gpu={count}, used: requests.nvidia.com/gpu=" in text
        )
    assert "exceeded quota" in troubleshooting()


def failure_of(release: Release, component: str) -> str:
    """The message of a Deployment whose pods cannot be created."""
    name = f"deployment/{release.name}-{component}"
    path = "jsonpath={.status.conditions[?(@.type=='ReplicaFailure')].message}"
    return release.kubectl("get", name, "--output", path)


def events(namespace: str, name: str, reason: str) -> str:
    """Messages of an object's events."""
    selector = f"involvedObject.name={name},reason={reason}"
    path = "jsonpath={.items[*].message}"
    return run("kubectl", "--namespace", namespace, "get", "events", "--field-selector", selector, "--output", path)


def test_spot_evictions_do_not_use_up_a_jobs_retries(namespace: str) -> None:
    """With no retries, a single counted failure would end the job."""
    submit = ["submit", "train", "--run-id", "spot", "--gpus", "1", "--retries", "0", *ON_SPOT, "-n", namespace]
    assert searchrl([*submit, "--toleration", "nvidia.com/gpu"]) == 0
    cluster = Cluster.connect(namespace=namespace)
    evicted = await_that(lambda: placed_pod(cluster, "spot", ""), 60, "a first pod")
    assert evicted["spec"]["nodeName"] in GPU_NODES
    evict(namespace, evicted["metadata"]["name"])

    def replaced() -> Json | None:
        # The node's own status update may overwrite the reported end: report it until the job has another pod.
        report_end(namespace, evicted["metadata"]["name"])
        return placed_pod(cluster, "spot", evicted["metadata"]["uid"])

    again = await_that(replaced, 60, "a second pod")
    assert again["spec"]["nodeName"] in GPU_NODES
    await_that(lambda: cluster.newest("spot").state == "done", 60, "the job ends well")
    assert cluster.newest("spot").failures == 0


def placed_pod(cluster: Cluster, run_id: str, but: str) -> Json | None:
    """A pod of the job that has a node, and is not the one with this uid."""
    pods = cluster.pods(cluster.newest(run_id))
    return next((p for p in pods if p["spec"].get("nodeName") and p["metadata"]["uid"] != but), None)


def test_a_failure_of_the_program_does_use_them_up(namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure that is not an eviction counts, in contrast to the test above."""
    import yaml

    capsys.readouterr()
    submit = ["submit", "train", "--run-id", "fails", "--retries", "0", *ON_SPOT, "-n", namespace, "--dry-run"]
    assert searchrl(submit) == 0
    job: Json = yaml.safe_load(capsys.readouterr().out)
    job["spec"]["template"]["metadata"]["annotations"]["kube-node/exit-code"] = "1"
    job["metadata"]["name"] = job["metadata"].pop("generateName") + "fails"
    create(namespace, job)
    cluster = Cluster.connect(namespace=namespace)
    await_that(lambda: cluster.newest("fails").state == "failed", 60, "the job has failed")
    view = cluster.newest("fails")
    assert view.failures == 1 and "backoff limit" in view.message


def test_a_lost_node_costs_a_job_no_retry(job_on_lost_machine: Cluster) -> None:
    await_that(lambda: job_on_lost_machine.newest("lost").state == "done", 150, "the job ends well elsewhere")
    assert job_on_lost_machine.newest("lost").failures == 0
