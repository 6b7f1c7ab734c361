"""A real API server accepts the manifests, and ``submit`` and ``runs`` work against it. No image is needed.

Run by ``make test-cluster``.
"""

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from searchrl.cli.main import run
from searchrl.jobs.catalog import CATALOG
from searchrl.jobs.cluster import Cluster
from tests.cluster.live.cluster_objects import api
from tests.cluster.live.releases import await_that

ROOT = Path(__file__).resolve().parents[3]
NO_KIND = re.compile("no matches for kind|could not find the requested resource")
NOWHERE = ["--node-selector", "searchrl.io/nowhere=true"]

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace for this module, with Pod Security restricted."""
    pytest.importorskip("kubernetes")
    if not os.environ.get("SEARCHRL_CLUSTER_TESTS"):
        pytest.skip("tests on a real cluster: make test-cluster")
    from urllib3.exceptions import HTTPError

    core = api("CoreV1Api")
    name = f"jobs-test-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    try:
        core.create_namespace({"metadata": {"name": name, "labels": labels}}, _request_timeout=10)
    except HTTPError as error:
        pytest.skip(f"NO CLUSTER: the API server does not answer ({type(error).__name__})")
    yield name
    core.delete_namespace(name)


@pytest.fixture
def cluster(namespace: str) -> Cluster:
    return Cluster.connect(namespace=namespace)


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_api_server_takes_every_file_strictly_and_without_a_warning(name: str, cluster: Cluster) -> None:
    """Pod Security reports pods that it would refuse as warnings."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on PATH")
    path = ROOT / "deploy" / "jobs" / name
    command = [kubectl, "create", "--dry-run=server", "--validate=strict", "-n", cluster.namespace, "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if CATALOG[name].manifests[0]["kind"] == "RayJob" and NO_KIND.search(done.stderr):
        pytest.skip("no KubeRay operator here")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_a_run_is_created_once_listed_stopped_resumed_and_deleted(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["-n", cluster.namespace]
    submit = ["submit", "train", "--run-id", "cycle", *NOWHERE, *where]
    assert run(submit) == 0 and "created" in capsys.readouterr().out
    assert run(submit) == 0 and "is already running" in capsys.readouterr().out
    assert len(cluster.runs("cycle")) == 1

    assert run(["runs", "list", "--json", *where]) == 0
    (listed,) = [job for job in json.loads(capsys.readouterr().out) if job["run_id"] == "cycle"]
    assert (listed["step"], listed["state"], listed["kind"]) == ("train", "starting", "Job")

    await_that(lambda: cluster.pods(cluster.newest("cycle")), 60, "a pod")
    await_that(lambda: "not scheduled" in status(capsys, "cycle", where), 60, "the status says where it waits")

    assert run(["runs", "stop", "cycle", *where]) == 0 and "resume cycle" in capsys.readouterr().out
    await_that(lambda: is_stopped(cluster, "cycle"), 60, "the run is stopped")
    assert run(["runs", "resume", "cycle", *where]) == 0
    await_that(lambda: cluster.pods(cluster.newest("cycle")), 60, "a pod again")
    assert run(["runs", "stop", "cycle", "--delete", *where]) == 0
    await_that(lambda: not cluster.runs("cycle"), 60, "the run is gone")
    capsys.readouterr()
    assert run(["runs", "status", "cycle", *where]) == 2
    assert "no job of run cycle" in capsys.readouterr().err


def test_engines_come_and_go_with_their_run(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Their pods wait here for a node; what they do is not this test's subject."""
    where = ["-n", cluster.namespace]
    submit = ["submit", "train", "--run-id", "sampled", "--engines", "1", "--engine-gpus", "0", *NOWHERE, *where]
    assert run(submit) == 0 and "created" in capsys.readouterr().out
    await_that(lambda: len(cluster.pods(cluster.newest("sampled"))) == 2, 60, "the pods of trainer and engine")
    (job,) = cluster.runs("sampled")
    (engine,) = [pod for pod in cluster.pods(job) if pod["metadata"]["name"].startswith(job.engines)]
    # the name by which the trainer calls it
    assert (engine["spec"]["hostname"], engine["spec"]["subdomain"]) == (f"{job.engines}-0", job.engines)

    assert run(["runs", "stop", "sampled", *where]) == 0
    await_that(lambda: is_stopped(cluster, "sampled"), 60, "trainer and engine are stopped")
    assert run(["runs", "resume", "sampled", *where]) == 0
    await_that(lambda: len(cluster.pods(cluster.newest("sampled"))) == 2, 60, "both pods again")

    # not by ``runs stop --delete``, which deletes the engines itself: also whoever deletes the job alone, deletes them
    api("BatchV1Api").delete_namespaced_job(job.name, cluster.namespace, propagation_policy="Background")
    await_that(lambda: not objects_of("sampled", cluster.namespace), 60, "the engines are gone")


def objects_of(run_id: str, namespace: str) -> list[str]:
    options = {"label_selector": f"searchrl.io/run={run_id}"}
    found = api("BatchV1Api").list_namespaced_job(namespace, **options).items
    found += api("CoreV1Api").list_namespaced_service(namespace, **options).items
    found += api("NetworkingV1Api").list_namespaced_network_policy(namespace, **options).items
    return [each.metadata.name for each in found]


def is_stopped(cluster: Cluster, run_id: str) -> bool:
    job = cluster.newest(run_id)
    return job.state == "stopped" and not cluster.pods(job)


def status(capsys: pytest.CaptureFixture[str], run_id: str, where: list[str]) -> str:
    capsys.readouterr()
    run(["runs", "status", run_id, *where])
    return capsys.readouterr().out


def test_a_queued_job_waits_suspended(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "evaluate", "--run-id", "queued", "--queue", "research", "-n", cluster.namespace]) == 0
    job = cluster.newest("queued")
    assert (job.state, job.queue, cluster.pods(job)) == ("queued", "research", [])
    assert run(["runs", "stop", "queued", "-n", cluster.namespace]) == 0 and "deleted" in capsys.readouterr().out


def test_what_the_api_server_refuses_is_one_sentence(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "train", "--memory", "lots", "-n", cluster.namespace]) == 2
    message = capsys.readouterr().err
    assert "quantities" in message and len(message.splitlines()) == 1
