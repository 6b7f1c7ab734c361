"""Fixtures: a cluster to install on, and releases of the CPU preset. Run by ``make test-cluster``."""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "searchrl"
WANTED = "SEARCHRL_CLUSTER_TESTS"
INSTALL_SECONDS = 300  # helm gives up then; `run` waits 60 s longer, so that helm's own message is the one reported


@dataclass(frozen=True)
class Release:
    """An installed chart."""

    name: str
    namespace: str

    def kubectl(self, *arguments: str) -> str:
        return run("kubectl", "--namespace", self.namespace, *arguments)

    def helm(self, *arguments: str) -> str:
        return run("helm", "--namespace", self.namespace, *arguments)


def run(*command: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS + 60)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def forwarded(release: Release, service: str, port: int) -> Iterator[int]:
    """A loopback port that leads to a service's port, opened with ``kubectl port-forward`` as a user does."""
    command = ["kubectl", "--namespace", release.namespace, "port-forward", f"service/{service}", f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found, f"{' '.join(command)} printed no port"
        yield int(found.group(1))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skip, and say how to get one, unless there is a cluster that these tests may use."""
    if not os.environ.get(WANTED):
        pytest.skip("tests on a real cluster: make test-cluster")
    for tool in ("kubectl", "helm"):
        if shutil.which(tool) is None:
            pytest.skip(f"tests on a real cluster need {tool} on PATH")


@pytest.fixture(scope="session")
def installed_release(cluster: None) -> Iterator[Release]:
    """The preset values-dev-cpu.yaml, installed into a namespace of its own."""
    namespace = f"searchrl-{secrets.token_hex(3)}"
    installed = Release("demo", namespace)
    run("kubectl", "create", "namespace", namespace)
    run("kubectl", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        try:
            installed.helm(
                "install", installed.name, str(CHART), "--values", str(CHART / "values-dev-cpu.yaml"),
                "--wait", "--timeout", f"{INSTALL_SECONDS}s",
            )  # fmt: skip
        except AssertionError as error:
            state = installed.kubectl("get", "pods,events", "--sort-by=.metadata.creationTimestamp")
            raise AssertionError(f"{error}\n{state}") from None
        yield installed
    finally:
        run("kubectl", "delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="session")
def replicated_release(cluster: None) -> Iterator[Release]:
    """A release with two pods of retriever, generator and searcher, and a Redis; tests may disturb it."""
    from tests.cluster.live.releases import REPLICATED, install, new_namespace

    with new_namespace() as namespace:
        yield install(Release("two", namespace), REPLICATED)


@pytest.fixture
def forward(installed_release: Release) -> Iterator[Callable[[str, int], int]]:
    """Forward ports for the duration of a test."""
    with ExitStack() as stack:
        yield lambda service, port: stack.enter_context(forwarded(installed_release, service, port))
