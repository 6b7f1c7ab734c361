"""Objects that the documentation's kubectl commands and manifests name are those that the project creates."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from searchrl.platform.server.auth import KeyRing
from tests.cluster.static.chart_rendering import RELEASE, render
from tests.unit.docs.documented_commands import ROOT, Command, commands, here_documents

KINDS = {
    "pod": "Pod",
    "deployment": "Deployment",
    "deploy": "Deployment",
    "service": "Service",
    "job": "Job",
    "pvc": "PersistentVolumeClaim",
    "secret": "Secret",
    "namespace": "Namespace",
    "node": "Node",
    "storageclass": "StorageClass",
    "workload": "Workload",  # of Kueue
    "rayjob": "RayJob",  # of KubeRay
    "all": "",
}
WITH_KIND = ("get", "describe", "delete", "wait", "label")
"""Verbs of kubectl that are followed by a kind, or by KIND/NAME."""
SYSTEM_NAMESPACES = {"kuberay-system", "monitoring", "gpu-operator", "kueue-system"}
LABELS_OF_OTHERS = {"ray.io/cluster": "set by the KubeRay operator"}
NAME = re.compile(r"(?:(\w+)/)?(searchrl-[a-z-]+)(?::\S*)?")
EVERY = commands()
KUBECTL = [found for found in EVERY if found.program == "kubectl"]


def before_dashes(command: Command) -> tuple[str, ...]:
    """The words for kubectl itself; what follows ``--`` runs in a container."""
    return command.words[: command.words.index("--")] if "--" in command.words else command.words


@cache
def objects() -> tuple[dict[str, Any], ...]:
    """What the release, the storage manifests and the commands of the documentation create, named as on the pages."""
    found: list[Any] = []
    for preset, sets in (("dev-cpu", ()), ("gpu-single", ("redis.mode=embedded",))):
        found += render(preset, *sets, release="searchrl")
    for path in (ROOT / "deploy" / "storage").glob("*.yaml"):
        found += [one for one in yaml.safe_load_all(path.read_text()) if one]
    for command in KUBECTL:
        if command.words[1:4] == ("create", "secret", "generic"):
            found.append({"kind": "Secret", "metadata": {"name": command.words[4]}})
    return tuple(found)


def names_of(kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in objects() if not kind or one["kind"] == kind}


def labels() -> set[tuple[str, str]]:
    """Labels of the pods, with their values."""
    found: set[tuple[str, str]] = set()
    for one in objects():
        pod = one["spec"].get("template", one) if one["kind"] in ("Deployment", "Job", "StatefulSet", "Pod") else {}
        found |= set(pod.get("metadata", {}).get("labels", {}).items())
    return found


@pytest.mark.parametrize("command", KUBECTL, ids=[found.text for found in KUBECTL])
def test_kubectl_names_objects_that_exist(command: Command) -> None:
    words = before_dashes(command)
    for before, word in pairwise(words):
        if (found := NAME.fullmatch(word)) and before != "generic":
            kind = KINDS[(found[1] or before).removesuffix("s")] if found[1] or before.rstrip("s") in KINDS else ""
            assert found[2] in names_of(kind), f"{command.text}: there is no {kind} {found[2]}"


@pytest.mark.parametrize("command", KUBECTL, ids=[found.text for found in KUBECTL])
def test_kubectl_names_kinds_labels_and_namespaces_that_exist(command: Command) -> None:
    words = before_dashes(command)
    if len(words) > 2 and words[1] in WITH_KIND and not words[2].startswith("-"):
        for kind in words[2].split("/")[0].split(","):
            assert kind in KINDS or kind.removesuffix("s") in KINDS, command.text
    for selector in command.values_of("-l"):
        key, _, value = selector.partition("=")
        assert key in LABELS_OF_OTHERS or (key, value) in labels(), f"{command.text}: no pod has {selector}"
    created = {found.words[3] for found in KUBECTL if found.words[1:3] == ("create", "namespace") and found.words[3:]}
    assert set(command.values_of("-n", "--namespace")) <= created | SYSTEM_NAMESPACES, command.text


def forwards() -> list[Command]:
    return [found for found in KUBECTL if "port-forward" in found.words and len(found.words) > 2]


@pytest.mark.parametrize("command", forwards(), ids=[found.text for found in forwards()])
def test_forwarded_ports_are_ports_of_the_service(command: Command) -> None:
    (service,) = [word.removeprefix("service/") for word in command.words if word.startswith("service/")]
    ports = {
        port["port"]
        for one in objects()
        if one["kind"] == "Service" and one["metadata"]["name"] == service
        for port in one["spec"]["ports"]
    }
    forwarded = {int(word.rpartition(":")[2]) for word in command.words if re.fullmatch(r"(\d+:)?\d+", word)}
    assert forwarded and forwarded <= ports, command.text


def test_the_list_of_keys_is_one_that_services_read(tmp_path: Path) -> None:
    (text,) = [text for _, text in here_documents() if "scope:" in text]
    file = tmp_path / "keys.yaml"
    # as the shell replaces them: a key, and a SHA-256
    file.write_text(re.sub(r"\$\(.*\)", "a" * 64, text).replace("$KEY", "a-key-of-services"))
    assert KeyRing.from_file(file).enabled


def test_manifests_in_scripts_have_kinds() -> None:
    texts = [text for _, text in here_documents() if "apiVersion" in text]
    assert texts
    for document in (one for text in texts for one in yaml.safe_load_all(text)):
        assert {"apiVersion", "kind", "metadata"} <= set(document)


def test_helm_commands_name_the_release_and_the_namespaces() -> None:
    """Releases of other charts are named by the charts' owners."""
    created = {found.words[3] for found in KUBECTL if found.words[1:3] == ("create", "namespace") and found.words[3:]}
    for command in (found for found in EVERY if found.program == "helm" and "-n" in found.words):
        assert set(command.values_of("-n")) <= created | SYSTEM_NAMESPACES, command.text
        if command.words[1] in ("test", "rollback", "history", "uninstall"):
            assert command.words[2] == "searchrl" != RELEASE, command.text
