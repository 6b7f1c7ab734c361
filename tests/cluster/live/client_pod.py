"""Creates pods with Python and the project's clients, through which tests act from inside the cluster."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.live.cluster_objects import RESTRICTED, create
from tests.cluster.live.conftest import Release

IMAGE = "localhost/searchrl/evaluator:dev"
# Sleeps until SIGTERM and exits at once; as process 1, a plain `sleep` would ignore the signal until it is killed.
SLEEP = ("python", "-c", "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {s.SIGTERM}); s.sigwait({s.SIGTERM})")


@contextmanager
def client_pod(
    release: Release,
    name: str,
    *,
    labels: Mapping[str, str],
    command: Sequence[str] = SLEEP,
    scripts: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Release]:
    """A running pod beside the release; ``scripts`` is mounted at ``/scripts``. By default the pod only sleeps."""
    volumes: dict[str, Mapping[str, object]] = {}
    if scripts is not None:
        release.kubectl("create", "configmap", name, f"--from-file={scripts}")
        volumes["/scripts"] = {"configMap": {"name": name}}
    create_pod(release, name, labels=labels, command=command, volumes=volumes, env=env)
    try:
        release.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
        yield release
    finally:
        release.kubectl("delete", "pod", name, "--ignore-not-found")
        release.kubectl("delete", "configmap", name, "--ignore-not-found")


def release_labels(release: Release, component: str) -> dict[str, str]:
    """The labels by which the release's policies recognize a pod."""
    prefix = "app.kubernetes.io"
    return {f"{prefix}/name": "searchrl", f"{prefix}/instance": release.name, f"{prefix}/component": component}


def python_in(release: Release, pod: str, code: str) -> Any:
    """Run Python code in the pod and parse what it prints as JSON."""
    return json.loads(release.kubectl("exec", pod, "--", "python", "-c", code))


def metric(release: Release, pod: str, *parts: str) -> float:
    """Sum of the pod's series whose lines have all ``parts``; read inside the pod, where no network policy applies."""
    url = "http://localhost:8080/metrics"
    code = f"import json, urllib.request as u; print(json.dumps(u.urlopen('{url}').read().decode()))"
    lines = (line for line in python_in(release, pod, code).splitlines() if not line.startswith("#"))
    return sum(float(line.split()[-1]) for line in lines if all(part in line for part in parts))


def create_pod(
    release: Release,
    name: str,
    *,
    command: Sequence[str],
    image: str = IMAGE,
    labels: Mapping[str, str] | None = None,
    volumes: Mapping[str, Mapping[str, object]] | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Create a pod that Pod Security restricted admits; ``volumes`` are sources by the path they are mounted at."""
    sources = [{"emptyDir": {}}, *(volumes or {}).values()]
    paths = ["/tmp", *(volumes or {})]
    container = {
        "name": "client",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "env": [{"name": key, "value": value} for key, value in {"HOME": "/tmp", **(env or {})}.items()],
        "resources": {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": f"volume-{number}", "mountPath": path} for number, path in enumerate(paths)],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": RESTRICTED,
        "containers": [container],
        "volumes": [{"name": f"volume-{number}", **source} for number, source in enumerate(sources)],
    }
    metadata = {"name": name, "labels": dict(labels or {})}
    create(release.namespace, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
