"""The release that all tests here share: vLLM on CPUs with a tiny model fetched from a store, monitored and traced."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.live.client_pod import python_in
from tests.cluster.live.cluster_objects import Json, create, files, pod, service
from tests.cluster.live.conftest import CHART, Release, forwarded, run
from tests.cluster.live.releases import PRESET, new_namespace, pods, settings

PODS = Path(__file__).parent / "pods"
PYTHON = "localhost/searchrl/evaluator:dev"
KEY = "a-key-of-the-tests-only"
QUESTION = "What is the creator of Juniper Bank?"
STORE_PORT, COLLECTOR_PORT = 9000, 4318  # the usual ports of MinIO and of OTLP over HTTP
INSTALL = "330s"  # vLLM starts in half a minute on an idle machine, and much later next to other tests


@dataclass
class Observed:
    """The release, the services around it, and its state when the installation ended.

    Attributes:
        outside: namespace of the store, the collector and Prometheus.
        notes: what the installation printed.
        first_metrics: the engine's metrics before its first request.
        seconds: duration of the installation.
    """

    release: Release
    outside: Release
    notes: str
    first_metrics: str
    seconds: float
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120, trust_env=False))

    def ask(self, method: str, question: Json, **headers: str) -> str:
        """Send a question to the generator over REST; returns the complete event stream."""
        body = {"question": question, "method": method}
        answer = self.http.post("/v1/answer", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture(scope="package")
def observed_release(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Install the release and forward a port to its generator."""
    with new_namespace() as inside, new_namespace() as outside, monitoring_api():
        beside = Release("beside", outside)
        _serve_model(beside, tmp_path_factory.mktemp("model"))
        create(outside, files("collector", PODS / "otlp_store.py"), service("collector", COLLECTOR_PORT))
        command = ["python", "/scripts/otlp_store.py", str(COLLECTOR_PORT)]
        create(outside, pod("collector", PYTHON, command, port=COLLECTOR_PORT, scripts="collector"))
        beside.kubectl("wait", "--for=condition=Ready", "pod/store", "pod/collector", "--timeout=120s")
        release = Release("observed", inside)
        secret = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "secret"}
        literals = [f"--from-literal={name}={value}" for name, value in secret.items()]
        release.kubectl("create", "secret", "generic", "store", *literals)
        started = time.monotonic()
        _install(release, values(outside))
        seconds = time.monotonic() - started
        notes = release.helm("get", "notes", release.name)
        with ExitStack() as stack:
            found = Observed(release, beside, notes, engine_metrics(release), seconds)
            port = stack.enter_context(forwarded(release, "observed-generator", 8080))
            found.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
            found.http.headers["authorization"] = f"Bearer {KEY}"
            stack.enter_context(found.http)
            yield found


def _install(release: Release, values: dict[str, object]) -> None:
    given = (*PRESET, "--values", str(CHART / "ci" / "vllm-cpu-values.yaml"), *settings(values))
    try:
        release.helm("install", release.name, str(CHART), *given, "--wait", "--timeout", INSTALL)
    except AssertionError as error:
        state = release.kubectl("get", "pods,events")
        raise AssertionError(f"{error}\n{state}") from None


def values(outside: str) -> dict[str, object]:
    """The CPU preset with vLLM, keys, monitoring and traces."""
    return {
        "auth": {"mode": "dev", "dev": {"key": KEY}},
        "smallWorld.trainWorlds": 2,
        "redis": {
            "mode": "embedded",
            "image": {"registry": "localhost", "repository": "thirdparty/redis", "tag": "dev", "digest": ""},
        },
        "engines.generator.model": "s3://models/tiny",
        "generator.config.context.max_answer_tokens": 16,  # the tiny model's text never ends by itself
        "engines.generator.env": [{"name": "VLLM_SERVER_DEV_MODE", "value": "1"}],
        "engines.generator.preStopSeconds": 1,
        "engines.generator.drainSeconds": 60,
        "storage.s3Endpoint": f"http://store.{outside}:{STORE_PORT}",
        "storage.credentialsSecret": "store",
        "networkPolicy.monitoringNamespace": outside,
        "monitoring.podMonitors": {"enabled": True, "interval": "5s"},
        "monitoring.rules.enabled": True,
        "monitoring.dashboards.enabled": True,
        "tracing": {
            "enabled": True,
            "endpoint": f"http://collector.{outside}:{COLLECTOR_PORT}",
            "protocol": "http/protobuf",
            "port": COLLECTOR_PORT,
            "ratio": 1,
        },
        # Small requests, so that other releases of the tests fit on the same node.
        "workload.resources.requests.cpu": "20m",
        "engines.searcher.resources.requests.cpu": "20m",
        "engines.generator.resources.requests.cpu": "100m",
        "tests.filters": {"world": "w002"},
        "workload.env": [{"name": "OTEL_BSP_SCHEDULE_DELAY", "value": "200"}],
    }


def _serve_model(beside: Release, folder: Path) -> None:
    from tests.fakes.tiny_llm import make_tiny_llm

    model = make_tiny_llm(folder / "tiny")
    beside.kubectl("create", "configmap", "model", f"--from-file={model}")
    create(beside.namespace, files("store", PODS / "s3_store.py"), service("store", STORE_PORT))
    command = ["python", "/scripts/s3_store.py", "/model", str(STORE_PORT)]
    store = pod("store", PYTHON, command, port=STORE_PORT, scripts="store", folder={"/model": "model"})
    create(beside.namespace, store)


@contextmanager
def monitoring_api() -> Iterator[None]:
    """Define the kinds of the Prometheus operator if the cluster has none; no operator is needed."""
    made = []
    for kind, plural in (("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")):
        name = f"{plural}.monitoring.coreos.com"
        if not run("kubectl", "get", "customresourcedefinition", name, "--ignore-not-found", "--output", "name"):
            create("default", _definition(kind, plural))
            made.append(name)
    try:
        for name in made:
            run("kubectl", "wait", "--for=condition=Established", f"customresourcedefinition/{name}", "--timeout=60s")
        yield
    finally:
        for name in made:
            run("kubectl", "delete", "customresourcedefinition", name, "--wait=false")


def _definition(kind: str, plural: str) -> Json:
    anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    spec = {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": names,
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": anything}],
    }
    name = f"{plural}.monitoring.coreos.com"
    metadata = {"name": name}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": spec,
    }


def engine_metrics(release: Release) -> str:
    """The engine's metrics, requested from the gateway's pod, which the policies admit."""
    address = f"http://{release.name}-engine-generator:8000/metrics"
    code = f"import json, urllib.request as u; print(json.dumps(u.urlopen('{address}', timeout=20).read().decode()))"
    return python_in(release, f"deployment/{release.name}-generator", code)


def newest_pod(release: Release, component: str) -> Any:
    """The one pod of a component that is not being deleted."""
    (found,) = (one for one in pods(release, component) if not one["metadata"].get("deletionTimestamp"))
    return found


def payloads(observed: Observed) -> list[str]:
    """The payloads that the collector has received so far."""
    with forwarded(observed.outside, "collector", COLLECTOR_PORT) as port:
        return json.loads(httpx.get(f"http://127.0.0.1:{port}/payloads", trust_env=False, timeout=60).text)
