"""Nodes without machines for placement tests: GPU, MIG and CPU nodes in two zones, whose pods report running at once.

The test cluster's controller reports the status of their pods. ``machine_without_kubelet`` makes a node that nobody
reports for, as if its machine had disappeared.
"""

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.live.cluster_objects import Json, api, create
from tests.cluster.live.conftest import ROOT, run

FAKE = "kube-node/fake"
# They are spot nodes, whose taint also keeps the pods of other tests away from nodes without a machine.
SPOT = {"key": "spot", "value": "true", "effect": "NoSchedule"}
TOLERATION = {"key": SPOT["key"], "operator": "Exists", "effect": SPOT["effect"]}
GPU_NODES, CPU_NODES, MIG_NODE = ("fake-gpu-0", "fake-gpu-1"), ("fake-cpu-0", "fake-cpu-1"), "fake-mig-0"
ALL_NODES = (*GPU_NODES, MIG_NODE, *CPU_NODES)
ZONES = {"fake-gpu-0": "zone-a", "fake-gpu-1": "zone-b", "fake-cpu-0": "zone-a", "fake-cpu-1": "zone-b"}


def kube() -> str:
    """The program that starts the test cluster; without it, skip with a warning."""
    folder = Path(os.environ.get("SEARCHRL_KUBE", ROOT.parent / "shared" / "kube"))
    if not (folder / "kube").is_file():
        message = f"NO FAKE NODES: there is no {folder / 'kube'}; SEARCHRL_KUBE names the folder that has it"
        warnings.warn(pytest.PytestWarning(message), stacklevel=2)
        pytest.skip(message)
    return str(folder / "kube")


@contextmanager
def fake_nodes() -> Iterator[None]:
    """Start the nodes, tainted before anything is scheduled, with the resources that device plugins would report."""
    program = kube()
    # The thread starts before the nodes exist: a taint set after `up` would leave them open to other pods meanwhile.
    guard = threading.Thread(target=_keep_others_away, daemon=True)
    guard.start()
    try:
        run(program, "fake-nodes", "up")
        guard.join(timeout=60)
        assert not guard.is_alive(), "the nodes could not be tainted"
        run("kubectl", "wait", "--for=condition=Ready", "node", "--selector", f"{FAKE}=true", "--timeout=60s")
        # What GPU feature discovery and the device plugin (mixed strategy) report for a partitioned GPU.
        run("kubectl", "label", "node", MIG_NODE, "nvidia.com/mig.capable=true", "--overwrite")
        offer(MIG_NODE, "nvidia.com/mig-3g.40gb", 2)
        yield
    finally:
        run(program, "fake-nodes", "down")


def offer(node: str, resource: str, count: int) -> None:
    """Let a node report devices."""
    _say_status(node, {resource: str(count)})


def machine_without_kubelet(name: str, labels: dict[str, str]) -> None:
    """A spot node that reports ready once: pods are scheduled to it, and nothing ever reports their status."""
    node: Json = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
    create("default", node | {"spec": {"taints": [SPOT]}})
    ready = {"type": "Ready", "status": "True", "reason": "Fake", "message": "no machine"}
    _say_status(name, {"cpu": "8", "memory": "16Gi", "pods": "10", "ephemeral-storage": "100Gi"}, ready)


def report_end(namespace: str, pod: str) -> None:
    """Report that a pod has ended, as the kubelet of a real node would, unless it is deleted already."""
    from kubernetes import client

    try:
        api("CoreV1Api").patch_namespaced_pod_status(pod, namespace, {"status": {"phase": "Failed"}})
    except client.ApiException as error:
        if error.status != 404:
            raise


def _say_status(node: str, has: dict[str, str], *conditions: Json) -> None:
    status = {"capacity": has, "allocatable": has} | ({"conditions": conditions} if conditions else {})
    patch = json.dumps({"status": status})
    run("kubectl", "patch", "node", node, "--subresource=status", "--type=strategic", "--patch", patch)


def _keep_others_away() -> None:
    """Taint each node as soon as it exists; a new node is not schedulable for its first moments.

    Runs in a thread of its own. Polls every 20 ms to be faster than the scheduler, for at most 60 s.
    """
    from kubernetes import client

    core = api("CoreV1Api")
    waiting = set(ALL_NODES)
    end = time.monotonic() + 60
    while waiting and time.monotonic() < end:
        for name in sorted(waiting):
            try:
                node = core.read_node(name)
                if SPOT["key"] not in {taint.key for taint in node.spec.taints or []}:
                    node.spec.taints = [
                        *(node.spec.taints or []),
                        client.V1Taint(key=SPOT["key"], value=SPOT["value"], effect=SPOT["effect"]),
                    ]
                    core.replace_node(name, node)
                waiting.discard(name)
            except client.ApiException as error:
                if error.status not in (404, 409):  # not created yet, or changed since it was read
                    raise
        time.sleep(0.02)
