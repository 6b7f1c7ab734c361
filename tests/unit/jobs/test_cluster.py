"""The client of the cluster, over scripted answers of the API server."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ProtocolError

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands import runs
from searchrl.cli.commands.submit import follow
from searchrl.errors import Conflict, Unavailable
from searchrl.jobs.cluster import Cluster
from searchrl.jobs.run_view import view_of
from services.trainer.validation.history import describe_validation

JOB_LABEL = "batch.kubernetes.io/job-name"


class FakeServer:
    """Answers the calls of all three APIs.

    Attributes:
        log: the stream of every pod's log.
        after_a_list: called once, between the next list of jobs and its answer.
    """

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.ray_jobs: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.log: Iterator[bytes] = iter(())
        self.after_a_list: Callable[[], object] | None = None

    def list_namespaced_job(self, _namespace: str, **_options: Any) -> Any:
        listed, self.after_a_list, then = list(self.jobs), None, self.after_a_list
        if then is not None:
            then()
        return SimpleNamespace(items=listed)

    def create_namespaced_job(self, _namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        names = [each["metadata"]["name"] for each in self.jobs]
        if manifest["metadata"]["name"] in names:
            raise ApiException(409, "AlreadyExists")
        manifest["metadata"] |= {"namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.jobs.append(manifest)
        return manifest

    def list_namespaced_custom_object(self, *_path: str, **_options: Any) -> dict[str, Any]:
        return {"items": self.ray_jobs}

    def list_namespaced_pod(self, _namespace: str, label_selector: str) -> Any:
        wanted = dict(term.split("=") for term in label_selector.split(","))
        return SimpleNamespace(items=[pod for pod in self.pods if wanted.items() <= pod["metadata"]["labels"].items()])

    def read_namespaced_pod_log(self, _name: str, _namespace: str, **_options: Any) -> Any:
        return SimpleNamespace(stream=lambda: self.log)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def cluster(server: FakeServer) -> Cluster:
    from kubernetes import client

    cluster = Cluster(client.ApiClient(client.Configuration()), "n")
    cluster._batch = cluster._core = cluster._custom = server
    return cluster


def job(name: str, kind: str = "Job", **status: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "n",
        "labels": {"searchrl.io/run": "r", "searchrl.io/step": "train"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"kind": kind, "metadata": metadata, "spec": {}, "status": status}


def submitted(prefix: str = "searchrl-train-") -> dict[str, Any]:
    """A manifest as it is submitted, before it has a name."""
    labels = {"searchrl.io/run": "r", "searchrl.io/step": "train"}
    return {"kind": "Job", "metadata": {"generateName": prefix, "labels": labels}, "spec": {}, "status": {}}


def pod(name: str, label: str, value: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"searchrl.io/run": "r", "searchrl.io/step": "train", label: value},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"containers": [{"name": "trainer"}]},
        "status": {"phase": "Running"},
    }


def test_a_log_that_breaks_while_it_is_followed_is_unavailable(cluster: Cluster, server: FakeServer) -> None:
    def broken() -> Iterator[bytes]:
        yield b"one\ntw"
        raise ProtocolError("Connection broken")

    server.jobs = [job("a")]
    server.pods = [pod("a-1", JOB_LABEL, "a")]
    server.log = broken()
    lines = cluster.follow(view_of(server.jobs[0]))
    assert next(lines) == "one"
    with pytest.raises(Unavailable, match="Connection broken"):
        next(lines)


def test_the_status_of_a_training_run_shows_its_last_validation(
    cluster: Cluster, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"step": 10, "validation_success": 0.75, "validation_questions": 200} | {
        "validation_best": 0.75, "validation_best_step": 10, "validation_start_step": 0,
        "validation_difference": 0.125, "validation_p_value": 0.004,
    }  # fmt: skip
    message = describe_validation(line, "success")
    server.jobs = [job("a", ready=1)]
    server.pods = [pod("a-1", JOB_LABEL, "a")]
    server.log = iter(
        [b'{"message": "validation of step 0: success 0.625"}\n', f'{{"message": "{message}"}}\n'.encode()]
    )
    monkeypatch.setattr(cluster, "events", lambda _job: [])
    monkeypatch.setattr(Cluster, "connect", lambda *_: cluster)
    parser = CommandParser("searchrl runs", "")
    runs.add_arguments(parser)
    assert runs.run(parser.parse(["status", "r"])) == 0
    assert capsys.readouterr().out.splitlines()[1].strip() == (
        "validation of step 10: success 0.750 on 200 questions, +0.125 since step 0 (p 0.004); best 0.750 at step 10"
    )


def test_a_ray_job_has_the_pods_of_its_cluster_and_its_submitter_only(cluster: Cluster, server: FakeServer) -> None:
    server.pods = [
        pod("earlier-head", "ray.io/cluster", "earlier-x"),
        pod("earlier-submitter", JOB_LABEL, "earlier"),
        pod("head", "ray.io/cluster", "later-y"),
        pod("submitter", JOB_LABEL, "later"),
    ]
    found = cluster.pods(view_of(job("later", "RayJob", rayClusterName="later-y")))
    assert {each["metadata"]["name"] for each in found} == {"head", "submitter"}
    found = cluster.pods(view_of(job("later", "RayJob")))
    assert [each["metadata"]["name"] for each in found] == ["submitter"]


def test_a_job_is_not_submitted_while_one_of_its_run_and_step_is_being_deleted(
    cluster: Cluster, server: FakeServer
) -> None:
    """The API server keeps a deleted job until its pods have ended; until then they may still write."""
    server.jobs = [job("dying")]
    found, is_new = cluster.create(submitted())
    assert (found.name, is_new) == ("dying", False)
    server.jobs[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    with pytest.raises(Conflict, match="dying is being deleted; submit again when its pods have ended"):
        cluster.create(submitted())
    server.jobs = []
    found, is_new = cluster.create(submitted())
    assert (found.name[:-5], is_new) == ("searchrl-train-", True)


def test_two_callers_at_the_same_moment_create_one_job(cluster: Cluster, server: FakeServer) -> None:
    """The other caller's job appears after this one has looked, and before it creates its own."""
    found = []
    server.after_a_list = lambda: found.append(cluster.create(submitted()))
    mine, is_new = cluster.create(submitted())
    ((theirs, theirs_is_new),) = found
    assert (mine.name, is_new) == (theirs.name, False)
    assert theirs_is_new
    assert len(server.jobs) == 1


def test_a_run_is_submitted_again_beside_its_finished_jobs(cluster: Cluster, server: FakeServer) -> None:
    for number in range(3):
        assert cluster.create(submitted())[1]
        assert len({each["metadata"]["name"] for each in server.jobs}) == number + 1
        server.jobs[-1]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}


def test_a_long_release_name_is_cut_to_what_a_label_can_hold(cluster: Cluster) -> None:
    """The job controller labels the pods with the job's name, in at most 63 characters."""
    assert len(cluster.create(submitted("r" * 53 + "-train-"))[0].name) == 63


def test_a_log_ends_when_its_job_is_deleted(
    cluster: Cluster, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def deleted() -> Iterator[bytes]:
        yield b"saved\n"
        server.jobs = server.pods = []

    server.jobs, server.pods, server.log = [job("a")], [pod("a-1", JOB_LABEL, "a")], deleted()
    assert follow(cluster, view_of(server.jobs[0])) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("saved\n", "Job a was deleted\n")
