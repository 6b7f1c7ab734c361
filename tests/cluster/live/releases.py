"""Installs releases for tests, changes them, and waits for their state."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.cluster.live.conftest import CHART, INSTALL_SECONDS, Release, run

PRESET = ("--values", str(CHART / "values-dev-cpu.yaml"))
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"

Found = TypeVar("Found")

# CPU requests so small that several releases of the tests fit on a small node.
MODEST = {
    "workload.resources.requests.cpu": "10m",
    "engines.searcher.resources.requests.cpu": "20m",
    "redis.resources.requests.cpu": "10m",
}

# Two replicas of all that answers. ReadWriteMany works with any storage class here, for all pods share one node.
REPLICATED = {
    **MODEST,
    "storage.accessMode": "ReadWriteMany",
    "smallWorld.trainWorlds": 1,
    "smallWorld.testWorlds": 1,
    "retriever.replicas": 2,
    "generator.replicas": 2,
    "engines.searcher.replicas": 2,
    "redis.mode": "embedded",
    "redis.image.registry": "localhost",
    "redis.image.repository": "thirdparty/redis",
    "redis.image.tag": "dev",
    "redis.image.digest": "",
}


def settings(values: Mapping[str, object]) -> list[str]:
    """``--set-json`` arguments of helm."""
    return [word for name, value in values.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]


@contextmanager
def new_namespace() -> Iterator[str]:
    """A namespace that enforces Pod Security restricted; it is deleted at the end with everything in it."""
    namespace = f"searchrl-{secrets.token_hex(3)}"
    run("kubectl", "create", "namespace", namespace)
    run("kubectl", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield namespace
    finally:
        run("kubectl", "delete", "namespace", namespace, "--wait=false")


def install(release: Release, values: Mapping[str, object], *, wait: bool = True) -> Release:
    """Install the CPU preset with further values, by default until everything is ready."""
    waiting = ("--wait", "--timeout", f"{INSTALL_SECONDS}s") if wait else ()
    try:
        release.helm("install", release.name, str(CHART), *PRESET, *settings(values), *waiting)
    except AssertionError as error:
        state = release.kubectl("get", "pods,events")
        raise AssertionError(f"{error}\n{state}") from None
    return release


def upgrade(release: Release, values: Mapping[str, object]) -> None:
    """Change values, and wait until the new pods have taken over."""
    release.helm(
        "upgrade", release.name, str(CHART), "--reuse-values", *settings(values),
        "--wait", "--timeout", f"{INSTALL_SECONDS}s",
    )  # fmt: skip


def pods(release: Release, component: str = "") -> list[dict[str, Any]]:
    """The pods of a release, or of one component, as the API server has them."""
    selector = f"{INSTANCE}={release.name}" + (f",{COMPONENT}={component}" if component else "")
    return json.loads(release.kubectl("get", "pods", "--selector", selector, "--output", "json"))["items"]


def pod_names(release: Release, component: str) -> set[str]:
    """Names of the pods of a component that are not being deleted."""
    return {pod["metadata"]["name"] for pod in pods(release, component) if not pod["metadata"].get("deletionTimestamp")}


def await_rollout(release: Release, *components: str, kind: str = "deployment") -> None:
    """Wait until every wanted replica of the components is available."""
    for component in components:
        release.kubectl("rollout", "status", f"{kind}/{release.name}-{component}", "--timeout=180s")


def await_that(condition: Callable[[], Found | None], seconds: float, what: str) -> Found:
    """Poll until ``condition()`` is truthy; return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(1)  # each kubectl costs a fifth of a second of processor time
    return found
