"""Creates Kubernetes objects for tests from plain dictionaries."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The security context that Pod Security "restricted" requires."""


def create(namespace: str, *objects: Json) -> None:
    """Create the objects, in this order."""
    for content in objects:
        command = ["kubectl", "--namespace", namespace, "create", "--filename", "-"]
        done = subprocess.run(command, input=json.dumps(content), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{content['kind']} {content['metadata']['name']}: {done.stderr}"


def evict(namespace: str, pod: str) -> None:
    """Evict a pod through the API, as a drain and a spot node's termination handler do."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    command = ["kubectl", "create", "--raw", path, "--filename", "-"]
    subprocess.run(command, input=json.dumps(body), text=True, check=True, capture_output=True)


def api(group: str) -> Any:
    """A client of the package ``kubernetes``, such as "CoreV1Api", where starting kubectl would be too slow."""
    from kubernetes import client, config

    return getattr(client, group)(config.new_client_from_config(os.environ.get("KUBECONFIG")))


def files(name: str, *paths: Path, **texts: str) -> Json:
    """A ConfigMap of files, given by path or as texts by name."""
    data = {path.name: path.read_text() for path in paths} | texts
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def service(name: str, port: int) -> Json:
    """A Service of the pod with this name."""
    spec = {"selector": {"app": name}, "ports": [{"name": "http", "port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def pod(
    name: str,
    image: str,
    command: Sequence[str],
    *,
    port: int,
    ready: str = "/",
    before: Sequence[str] = (),
    memory: str = "256Mi",
    scripts: str = "",
    account: str = "",
    folder: Mapping[str, str] | None = None,
) -> Json:
    """A pod under Pod Security restricted that serves HTTP; ``before`` runs first.

    ``/tmp`` is writable and shared by both; ``scripts`` is a ConfigMap at ``/scripts``, ``folder`` maps further paths
    to ConfigMaps.
    """
    mounted = {**({"/scripts": scripts} if scripts else {}), **(folder or {})}
    volumes: list[Json] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Json] = [{"name": "tmp", "mountPath": "/tmp"}]
    for number, (path, configmap) in enumerate(mounted.items()):
        volumes.append({"name": f"files-{number}", "configMap": {"name": configmap}})
        mounts.append({"name": f"files-{number}", "mountPath": path, "readOnly": True})
    common: Json = {
        "image": image,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    main: Json = {
        **common,
        "name": name,
        "command": list(command),
        "ports": [{"name": "http", "containerPort": port}],
        "readinessProbe": {"httpGet": {"path": ready, "port": port}, "periodSeconds": 1},
    }
    spec: Json = {
        "automountServiceAccountToken": bool(account),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 2,
        "securityContext": RESTRICTED,
        "initContainers": [{**common, "name": "before", "command": list(before)}] if before else [],
        "containers": [main],
        "volumes": volumes,
    }
    if account:
        spec["serviceAccountName"] = account
    labels = {"app": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
