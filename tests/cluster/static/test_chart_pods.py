"""What every pod of a release carries, whatever it runs: requests, user, volumes, labels, scrape targets."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.static.chart_rendering import (
    CHART,
    PRESETS,
    TOGGLES,
    containers,
    helm,
    named,
    pods,
    render,
)

ENGINE = "rel-engine-generator"


def pod_of(documents: tuple[dict[str, Any], ...], name: str, kind: str = "Deployment") -> dict[str, Any]:
    return named(documents, kind, name)["spec"]["template"]["spec"]


@pytest.mark.parametrize("preset", ["gpu-single", "gpu-prod", "mig", "gpu-prod+spot"])
def test_a_gpu_pod_requests_what_the_values_say_beside_its_devices(preset: str) -> None:
    """If the request equaled the limit, a pod would no longer fit on a node of the right size."""
    resources = pod_of(render(preset), ENGINE)["containers"][0]["resources"]
    wanted = {"gpu-single": ("4", "32Gi", "48Gi"), "mig": ("4", "32Gi", "48Gi")}.get(preset, ("8", "64Gi", "96Gi"))
    requests, limits = resources["requests"], resources["limits"]
    assert (requests["cpu"], requests["memory"], limits["memory"]) == wanted and "cpu" not in limits
    limited = pod_of(render(preset, "engines.generator.resources.limits.cpu=16"), ENGINE)["containers"][0]["resources"]
    assert (limited["requests"]["cpu"], limited["limits"]["cpu"]) == (wanted[0], 16)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_process_can_ask_for_its_users_name(preset: str) -> None:
    """A user id chosen by the platform has no entry in /etc/passwd, and torch looks up the user's name at import."""
    for name, _, spec in pods(render(preset, "redis.mode=embedded")):
        for container in containers(spec):
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert environment["USER"] == "searchrl", (name, container["name"])


def test_a_claim_with_dots_or_a_long_name_gives_legal_volumes_and_labels() -> None:
    long = "c" * 70
    engine = ("engines.searcher.kind=policyServer", "engines.searcher.gpu.count=0", "engines.searcher.gpu.profile=none")
    documents = render(
        "gpu-single", f"storage.existingClaim={long}", f"engines.searcher.model=pvc://{long}.v1/a", *engine
    )
    for name, metadata, spec in pods(documents):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", volume) for volume in volumes), name
        mounted = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
        assert mounted <= set(volumes), name
        assert all(len(value) <= 63 for value in metadata["labels"].values()), name
    (claim,) = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod_of(documents, "rel-engine-searcher")["volumes"]
        if volume["name"].startswith("claim-")
    ]
    assert claim == f"{long}.v1"


def test_engines_listen_on_every_address_family() -> None:
    args = pod_of(render("gpu-single", "listenHost=::"), ENGINE)["containers"][0]["args"]
    assert "--host=::" in args and all(isinstance(word, str) for word in args)


def test_a_new_version_of_the_chart_restarts_nothing_and_repeats_no_job(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    path = tmp_path / "chart" / "Chart.yaml"
    path.write_text(re.sub(r"(?m)^version: .*$", "version: 9.9.9", path.read_text()))
    sets = ("--set", "storage.fetch[0].uri=s3://bucket/q,storage.fetch[0].to=questions/q")
    rendered = [
        yaml.safe_load_all(
            helm("template", "rel", str(chart), "--values", str(CHART / "values-dev-cpu.yaml"), *sets).stdout
        )
        for chart in (CHART, tmp_path / "chart")
    ]
    old, new = (
        {
            name: (metadata, spec)
            for name, metadata, spec in pods(tuple(filter(None, one)))
            if not name.startswith("Pod ")
        }
        for one in rendered
    )  # a bare pod belongs to `helm test` and is recreated each time
    assert old == new and any(name.startswith("Job ") for name in old)


def test_scrape_annotations_name_the_scheme() -> None:
    for values, scheme in (((), None), (TOGGLES["TLS"], "https")):
        documents = render("dev-cpu", "monitoring.annotations=true", *values)
        deployment = named(documents, "Deployment", "rel-retriever")
        assert deployment["spec"]["template"]["metadata"]["annotations"].get("prometheus.io/scheme") == scheme


def test_of_an_indexed_job_only_the_pod_that_serves_is_scraped_and_runs_have_a_label() -> None:
    monitor = named(render("gpu-prod"), "PodMonitor", "rel-trainer")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    drop, run = endpoint["relabelings"]
    assert drop["action"] == "drop" and re.fullmatch(drop["regex"], "1") and not re.fullmatch(drop["regex"], "0")
    assert not re.fullmatch(drop["regex"], "")  # the pods of a Job without an index stay
    assert run["targetLabel"] == "run"


def test_the_cache_takes_its_password_from_no_argument_and_runs_no_scripts() -> None:
    spec = pod_of(render("gpu-prod", "redis.existingSecret=secret"), "rel-redis", kind="StatefulSet")
    (main,) = spec["containers"]
    words = " ".join(main["command"] + main["args"])
    assert 'requirepass "$REDIS_PASSWORD"' in words and "$(REDIS_PASSWORD)" not in words
    assert 'rename-command EVAL ""' in words
    assert main["image"].startswith("docker.io/valkey/valkey@sha256:")
