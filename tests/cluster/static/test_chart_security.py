"""Every pod of every preset satisfies Pod Security 'restricted', with limits, pinned images and no API rights."""

import re
from typing import Any

import pytest

from tests.cluster.static.chart_rendering import CASES, TOGGLES, containers, of_kind, pods, render, template

VOLUME_KINDS = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}  # a subset of what 'restricted' allows
DIGEST = "sha256:" + "ab" * 32


def breaches(spec: dict[str, Any]) -> list[str]:
    """Violations of Pod Security 'restricted' (https://kubernetes.io/docs/concepts/security/) and of our own rules."""
    pod = spec["securityContext"]
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [] if pod.get("runAsNonRoot") else ["may run as root"]
    found += [] if pod.get("seccompProfile") == {"type": "RuntimeDefault"} else ["no seccomp profile"]
    found += ["has a token"] if spec.get("automountServiceAccountToken") is not False else []
    found += ["has service links"] if spec.get("enableServiceLinks") is not False else []
    for volume in spec["volumes"]:
        found += [f"volume {volume}"] if not (set(volume) - {"name"}) <= VOLUME_KINDS else []
        found += (
            [f"{volume['name']} has no limit"] if "sizeLimit" not in volume.get("emptyDir", {"sizeLimit": ""}) else []
        )
    for container in containers(spec):
        name, context, resources = container["name"], container["securityContext"], container["resources"]
        found += [] if context["allowPrivilegeEscalation"] is False else [f"{name} may gain privileges"]
        found += [] if context["readOnlyRootFilesystem"] is True else [f"{name} writes to its root"]
        found += [] if context["capabilities"] == {"drop": ["ALL"]} else [f"{name} has capabilities"]
        found += [] if {"cpu", "memory"} <= set(resources["requests"]) else [f"{name} requests nothing"]
        found += [] if "memory" in resources["limits"] else [f"{name} has no memory limit"]
        found += [f"{name} has host ports"] if any("hostPort" in port for port in container.get("ports", [])) else []
        if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            found.append(f"{name} keeps its last words")
    return found


@pytest.mark.parametrize(("preset", "toggle"), CASES)
def test_every_pod_is_restricted_and_limited(preset: str, toggle: str) -> None:
    for name, _, spec in pods(render(preset, *TOGGLES[toggle])):
        assert not breaches(spec), name


@pytest.mark.parametrize(("preset", "toggle"), CASES)
def test_every_image_has_a_version_and_no_rights_are_asked_for(preset: str, toggle: str) -> None:
    documents = render(preset, *TOGGLES[toggle])
    for name, _, spec in pods(documents):
        for container in containers(spec):
            assert re.search(r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]), name
            assert not container["image"].endswith(":latest"), name
    kinds = {document["kind"] for document in documents}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    assert all(account["automountServiceAccountToken"] is False for account in of_kind(documents, "ServiceAccount"))


@pytest.mark.parametrize("part", ["retriever", "generator", "evaluator", "trainer"])
def test_a_digest_takes_precedence_over_the_tag_in_every_pod_of_the_image(part: str) -> None:
    images = {
        container["image"]
        for _, _, spec in pods(render("dev-cpu", f"{part}.image.digest={DIGEST}", f"{part}.image.tag=v9"))
        for container in containers(spec)
        if f"/{part}" in container["image"]
    }
    assert images == {f"localhost/searchrl/{part}@{DIGEST}"}


@pytest.mark.parametrize("key", ["image.tag", "retriever.image.tag", "redis.image.tag", "evaluator.image.tag"])
def test_the_tag_latest_is_refused(key: str) -> None:
    done = template("dev-cpu", f"{key}=latest", "redis.mode=embedded", "redis.image.digest=")
    assert done.returncode != 0 and "latest" in done.stderr and "tag" in done.stderr


def test_secrets_come_from_the_cluster_and_never_from_values() -> None:
    assert not of_kind(render("gpu-prod"), "Secret")
    (made,) = of_kind(render("dev-cpu", *TOGGLES["dev key"]), "Secret")
    assert made["metadata"]["name"] == "rel-dev-keys"


@pytest.mark.parametrize("volume", ["hostPath.path=/", "hostPath.path=/var/run"])
def test_a_volume_of_the_host_is_refused(volume: str) -> None:
    done = template("dev-cpu", "retriever.extraVolumes[0].name=x", f"retriever.extraVolumes[0].{volume}")
    assert done.returncode != 0 and "extraVolumes" in done.stderr


def test_only_the_evaluator_and_jobs_write_to_the_storage() -> None:
    writers = {
        (name, mount["mountPath"])
        for name, _, spec in pods(render("dev-cpu"))
        for container in containers(spec)
        for mount in container["volumeMounts"]
        if mount["name"] == "data" and not mount.get("readOnly")
    }
    assert {name.rpartition("-")[0] for name, _ in writers if name.startswith("Job")} == {"Job rel-job-small-world"}
    assert {place for place in writers if not place[0].startswith("Job")} == {
        ("Deployment rel-evaluator", "/data/evaluations")
    }
