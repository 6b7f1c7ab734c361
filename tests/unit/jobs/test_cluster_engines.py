"""The engines of a run are created, shown, stopped and deleted with it, over scripted answers of the API server."""

from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from searchrl.errors import Conflict, Forbidden
from searchrl.jobs.catalog import DEFAULTS, render_all
from searchrl.jobs.cluster import Cluster
from searchrl.jobs.run_view import RunView
from searchrl.jobs.steps import STEPS

NAME = "searchrl-r-engines"
KINDS = {"job": "Job", "service": "Service", "network_policy": "NetworkPolicy"}


class FakeServer:
    """Keeps Jobs, Services and NetworkPolicies; answers the calls of all APIs.

    Attributes:
        forbidden: a kind that may not be created.
        logs: the log of each pod, by its name.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, bytes] = {}
        self.forbidden = ""

    def __getattr__(self, name: str) -> Any:
        verb, _, kind = name.partition("_namespaced_")
        if kind not in KINDS:
            raise AttributeError(name)
        return lambda *arguments, **options: getattr(self, f"on_{verb}")(KINDS[kind], *arguments, **options)

    def on_create(self, kind: str, _namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        if kind == self.forbidden:
            raise ApiException(403, "Forbidden")
        key = kind, manifest["metadata"]["name"]
        if key in self.objects:
            raise ApiException(409, "AlreadyExists")
        metadata = {"namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z", "uid": f"uid-{len(self.objects)}"}
        self.objects[key] = {**manifest, "metadata": {**manifest["metadata"], **metadata}, "status": {}}
        return self.objects[key]

    def on_read(self, kind: str, name: str, _namespace: str) -> Any:
        found = self.found(kind, name)
        conditions = [SimpleNamespace(**condition) for condition in found["status"].get("conditions", [])]
        return SimpleNamespace(
            metadata=SimpleNamespace(labels=found["metadata"]["labels"]), status=SimpleNamespace(conditions=conditions)
        )

    def on_patch(self, kind: str, name: str, _namespace: str, patch: dict[str, Any]) -> None:
        self.found(kind, name)["spec"] |= patch["spec"]

    def on_delete(self, kind: str, name: str, _namespace: str, propagation_policy: str) -> None:
        self.found(kind, name)
        del self.objects[kind, name]

    def on_list(self, kind: str, _namespace: str, label_selector: str) -> Any:
        wanted = dict(term.split("=") for term in label_selector.split(",") if "=" in term)
        of_kind = [found for (each, _), found in self.objects.items() if each == kind]
        return SimpleNamespace(items=[o for o in of_kind if wanted.items() <= o["metadata"]["labels"].items()])

    def found(self, kind: str, name: str) -> dict[str, Any]:
        if (kind, name) not in self.objects:
            raise ApiException(404, "NotFound")
        return self.objects[kind, name]

    def list_namespaced_custom_object(self, *_path: str, **_options: Any) -> dict[str, Any]:
        return {"items": []}

    def list_namespaced_event(self, _namespace: str, field_selector: str) -> Any:
        return SimpleNamespace(items=[SimpleNamespace(reason="Seen", message=field_selector)])

    def list_namespaced_pod(self, _namespace: str, label_selector: str) -> Any:
        name, _, value = label_selector.partition("=")
        return SimpleNamespace(items=[pod for pod in self.pods if pod["metadata"]["labels"].get(name) == value])

    def read_namespaced_pod_log(self, name: str, _namespace: str, **_options: Any) -> Any:
        return SimpleNamespace(stream=lambda: iter([self.logs[name]]))


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def cluster(server: FakeServer) -> Cluster:
    from kubernetes import client

    cluster = Cluster(client.ApiClient(client.Configuration()), "n")
    cluster._batch = cluster._core = cluster._custom = cluster._network = server
    return cluster


def submit(cluster: Cluster, run_id: str = "r") -> RunView:
    step = STEPS["train"].build(DEFAULTS, run_id, {"engines": 2}, ())
    manifest, *engines = render_all(step, DEFAULTS)
    run, is_new = cluster.create(manifest, engines)
    assert is_new
    return run


def finish(server: FakeServer, name: str) -> None:
    server.objects["Job", name]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}


def test_engines_belong_to_the_job_that_they_sample_for(cluster: Cluster, server: FakeServer) -> None:
    run = submit(cluster)
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": run.name,
        "uid": server.objects["Job", run.name]["metadata"]["uid"],
    }
    for kind in ("Service", "NetworkPolicy", "Job"):
        assert server.objects[kind, NAME]["metadata"]["ownerReferences"] == [owner]
    assert run.engines == NAME


def test_engines_are_no_run_of_their_own(cluster: Cluster) -> None:
    run = submit(cluster)
    assert [found.name for found in cluster.runs()] == [run.name]


def test_what_an_earlier_job_of_the_run_has_left_is_replaced(cluster: Cluster, server: FakeServer) -> None:
    first = submit(cluster)
    finish(server, first.name)
    second = submit(cluster)
    assert second.name != first.name
    for kind in ("Service", "NetworkPolicy", "Job"):
        assert server.objects[kind, NAME]["metadata"]["ownerReferences"][0]["name"] == second.name


def test_engines_of_another_run_are_not_replaced(cluster: Cluster, server: FakeServer) -> None:
    submit(cluster)
    server.objects["Service", NAME]["metadata"]["labels"]["searchrl.io/run"] = "another"
    server.objects = {key: found for key, found in server.objects.items() if key[0] == "Service"}
    with pytest.raises(Conflict, match="Service searchrl-r-engines belongs to something else"):
        submit(cluster)
    assert list(server.objects) == [("Service", NAME)], "the job is not left without engines"


def test_no_job_is_left_without_its_engines(cluster: Cluster, server: FakeServer) -> None:
    server.forbidden = "NetworkPolicy"
    with pytest.raises(Forbidden):
        submit(cluster)
    # The Service is deleted by Kubernetes, because it has an owner.
    assert list(server.objects) == [("Service", NAME)]


def test_engines_are_stopped_and_resumed_with_their_trainer(cluster: Cluster, server: FakeServer) -> None:
    run = submit(cluster)
    assert cluster.stop(run) == "stopped"
    assert server.objects["Job", run.name]["spec"]["suspend"] is True
    assert server.objects["Job", NAME]["spec"]["suspend"] is True
    cluster.resume(run)
    assert server.objects["Job", run.name]["spec"]["suspend"] is False
    assert server.objects["Job", NAME]["spec"]["suspend"] is False


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_run_whose_engines_have_ended_is_not_resumed(cluster: Cluster, server: FakeServer, is_gone: bool) -> None:
    run = submit(cluster)
    cluster.stop(run)
    finish(server, NAME)
    if is_gone:
        del server.objects["Job", NAME]
    with pytest.raises(Conflict, match=r"the engines of .* have ended: 'searchrl runs stop r --delete'"):
        cluster.resume(run)
    assert server.objects["Job", run.name]["spec"]["suspend"] is True


def test_engines_are_deleted_with_their_run(cluster: Cluster, server: FakeServer) -> None:
    """Also those that kubectl has created, which have no owner."""
    run = submit(cluster)
    other = submit(cluster, "other")
    cluster.delete(run)
    assert {name for _, name in server.objects} == {other.name, other.engines}
    cluster.delete(other)
    assert not server.objects


def pod(name: str, job: str, index: str, component: str) -> dict[str, Any]:
    labels = {
        "batch.kubernetes.io/job-name": job,
        "batch.kubernetes.io/job-completion-index": index,
        "app.kubernetes.io/component": component,
    }
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "x"}]},
        "status": {"phase": "Running"},
    }


def test_the_log_is_the_trainers_or_that_of_one_engine(cluster: Cluster, server: FakeServer) -> None:
    run = submit(cluster)
    server.pods = [
        pod("engine-0", NAME, "0", "engine-rollout"),
        pod("engine-1", NAME, "1", "engine-rollout"),
        pod("trainer", run.name, "0", "trainer"),
        pod("another", "searchrl-other-engines", "0", "engine-rollout"),
    ]
    server.logs = {each["metadata"]["name"]: each["metadata"]["name"].encode() for each in server.pods}
    assert [each["metadata"]["name"] for each in cluster.pods(run)] == ["trainer", "engine-0", "engine-1"]
    assert list(cluster.follow(run, follow=False)) == ["trainer"]
    assert list(cluster.follow(run, follow=False, engine=1)) == ["engine-1"]
    assert len(cluster.events(run)) == 2


def test_the_log_of_an_engine_continues_after_a_restart(cluster: Cluster, server: FakeServer) -> None:
    run = submit(cluster)
    server.pods = [pod("engine-0", NAME, "0", "engine-rollout")]
    server.logs = {"engine-0": b"first"}
    lines = cluster.follow(run, engine=0)
    assert next(lines) == "first"
    server.logs = {"engine-0": b"second"}
    server.pods[0]["status"]["containerStatuses"] = [{"name": "x", "restartCount": 1, "state": {}}]
    assert next(lines) == "second"
    finish(server, run.name)
    assert list(lines) == []


def test_a_run_without_engines_is_stopped_and_deleted_alone(cluster: Cluster, server: FakeServer) -> None:
    (manifest,) = render_all(STEPS["train"].build(DEFAULTS, "r", {}, ()), DEFAULTS)
    run, _ = cluster.create(manifest)
    assert run.engines == ""
    cluster.stop(run)
    cluster.resume(run)
    cluster.delete(run)
    assert not server.objects
