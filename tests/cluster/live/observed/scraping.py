"""Runs Prometheus in a pod, configured from a release's PodMonitors and rules as the Prometheus operator would do it.

Debian's build has no Kubernetes discovery: the addresses of the pods that a PodMonitor selects are looked up here.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import yaml

from tests.cluster.live.cluster_objects import Json, create, files, pod, service
from tests.cluster.live.conftest import Release, forwarded
from tests.cluster.live.releases import pods
from tests.fakes.loopback_prometheus import LoopbackPrometheus

IMAGE = "localhost/thirdparty/prometheus:dev"
PORT = 9090  # Prometheus's usual port


@contextmanager
def prometheus_of(release: Release, outside: Release) -> Iterator[LoopbackPrometheus]:
    """Run Prometheus in the namespace that the policies admit, with the PodMonitors' targets and the rules."""
    monitors, rules = (_objects(release, kind) for kind in ("podmonitors", "prometheusrules"))
    config = {
        "global": {"evaluation_interval": "5s"},
        "scrape_configs": [scrape_config(monitor, pods(release)) for monitor in monitors],
        "rule_files": ["/rules/*.yaml"],
    }
    groups = {f"{rule['metadata']['name']}.yaml": yaml.safe_dump({"groups": rule["spec"]["groups"]}) for rule in rules}
    namespace = outside.namespace
    create(namespace, files("prometheus", **{"prometheus.yml": yaml.safe_dump(config)}), files("rules", **groups))
    create(namespace, service("prometheus", PORT))
    command = [
        "prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/data",
        f"--web.listen-address=0.0.0.0:{PORT}", "--log.level=warn",
    ]  # fmt: skip
    folder = {"/etc/prometheus": "prometheus", "/rules": "rules"}
    server = pod("prometheus", IMAGE, command, port=PORT, ready="/-/ready", folder=folder, memory="512Mi")
    create(namespace, server)
    outside.kubectl("wait", "--for=condition=Ready", "pod/prometheus", "--timeout=120s")
    with (
        forwarded(outside, "prometheus", PORT) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        yield LoopbackPrometheus(client)


def scrape_config(monitor: Json, candidates: list[Json]) -> Json:
    """The scrape configuration of a PodMonitor with one endpoint; labels as the operator sets them."""
    spec, name, namespace = monitor["spec"], monitor["metadata"]["name"], monitor["metadata"]["namespace"]
    (endpoint,) = spec["podMetricsEndpoints"]
    return {
        "job_name": f"{namespace}/{name}",
        "scrape_interval": endpoint["interval"],
        "scrape_timeout": endpoint["interval"],
        "metrics_path": endpoint["path"],
        "relabel_configs": [_snake_case(rule) for rule in endpoint.get("relabelings", [])],
        "static_configs": [
            target
            for one in candidates
            if spec["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
            for target in _targets(one, endpoint["port"], spec["podTargetLabels"])
        ],
    }


def _targets(one: Json, port: str, labels: list[str]) -> Iterator[Json]:
    """The containers of a running pod that have a port of this name."""
    if one["status"]["phase"] != "Running":
        return
    own = {_sanitized(label): one["metadata"]["labels"][label] for label in labels}
    discovered = {
        f"__meta_kubernetes_pod_label_{_sanitized(name)}": text for name, text in one["metadata"]["labels"].items()
    }
    place = {"namespace": one["metadata"]["namespace"], "pod": one["metadata"]["name"], **own, **discovered}
    for container in one["spec"]["containers"]:
        for exposed in container.get("ports", []):
            if exposed.get("name") == port:
                address = f"{one['status']['podIP']}:{exposed['containerPort']}"
                yield {"targets": [address], "labels": place | {"container": container["name"]}}


def _snake_case(rule: Json) -> Json:
    """A relabeling with the keys that Prometheus's own configuration uses."""
    return {re.sub("([A-Z])", lambda letter: "_" + letter[0].lower(), key): value for key, value in rule.items()}


def _sanitized(label: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def _objects(release: Release, kind: str) -> list[Any]:
    return json.loads(release.kubectl("get", kind, "--output", "json"))["items"]
