"""A wrong value stops the render with a message that names the key, the value and what to write instead."""

import pytest

from tests.cluster.static.chart_rendering import CHART, template

# preset, assignments, and words that the message must contain: key, value, remedy
RULES: dict[str, tuple[str | None, tuple[str, ...], tuple[str, ...]]] = {
    "no keys": (None, (), ("auth.existingSecret", "empty", "kubectl create secret", "auth.mode=off")),
    "short dev key": ("dev-cpu", ("auth.mode=dev", "auth.dev.key=short"), ("auth.dev.key", "5 characters", "16")),
    "TLS without a certificate": ("dev-cpu", ("tls.enabled=true",), ("tls.existingSecret", "empty", "tls.crt")),
    "external redis without a URL": (
        "dev-cpu",
        ("redis.mode=external",),
        ("redis.external.existingSecret", "empty", "redis.mode=embedded"),
    ),
    "tracing to nowhere": ("dev-cpu", ("tracing.enabled=true",), ("tracing.endpoint", "empty", "4317")),
    "unknown profile": (
        "gpu-single",
        ("engines.generator.gpu.profile=h100",),
        ("engines.generator.gpu.profile", "h100", "mig-1g.20gb", "gpuProfiles"),
    ),
    "devices without a profile": (
        "dev-cpu",
        ("retriever.gpu.count=1",),
        ("retriever.gpu.count", "is 1", "gpu.profile such as full"),
    ),
    "a profile without devices": (
        "gpu-single",
        ("engines.generator.gpu.count=0",),
        ("engines.generator.gpu.count", "is 0", "at least 1"),
    ),
    "parallel over other than its devices": (
        "gpu-single",
        ("engines.generator.vllm.tensorParallelSize=4",),
        ("engines.generator.vllm.tensorParallelSize", "is 4", "Write 1", "engines.generator.gpu.count"),
    ),
    "parallel over slices": (
        "mig",
        ("engines.generator.vllm.tensorParallelSize=2", "engines.generator.gpu.count=2"),
        ("engines.generator.vllm.tensorParallelSize", "is 2", "slices"),
    ),
    "parallel on CPUs": (
        "dev-cpu",
        ("engines.searcher.kind=vllm", "engines.searcher.vllm.tensorParallelSize=2"),
        ("engines.searcher.vllm.tensorParallelSize", "is 2", "1 on CPUs"),
    ),
    "vLLM on CPUs without a cache": (
        "dev-cpu",
        ("engines.searcher.kind=vllm",),
        ("engines.searcher.vllm.cpuKvCacheGib", "is 0", "gpu.profile"),
    ),
    "several on one node's storage": (
        "dev-cpu",
        ("retriever.replicas=3",),
        ("retriever.replicas", "is 3", "ReadWriteOnce", "storage.accessMode=ReadWriteMany"),
    ),
    "scaled on one node's storage": (
        "dev-cpu",
        ("generator.autoscaling.kind=hpa",),
        ("generator.autoscaling.maxReplicas", "is 4", "ReadWriteMany"),
    ),
    "no time to drain": (
        "dev-cpu",
        ("generator.terminationGracePeriodSeconds=20",),
        ("generator.terminationGracePeriodSeconds", "is 20", "at least 30", "preStopSeconds 5 + drainSeconds 20"),
    ),
    "no time for vLLM to drain": (
        "gpu-single",
        ("engines.generator.terminationGracePeriodSeconds=60",),
        ("engines.generator.terminationGracePeriodSeconds", "is 60", "at least 70"),
    ),
    "an engine without a model": (
        "gpu-single",
        ("engines.generator.model=",),
        ("engines.generator.model", "empty", "hf://ORG/NAME"),
    ),
    "a searcher elsewhere without its folder": (
        "gpu-single",
        ("engines.searcher.kind=url", "engines.searcher.url.baseUrl=http://x:1", "engines.searcher.url.model=m"),
        ("engines.searcher.model", "empty", "/data/models"),
    ),
    "a model by a bare name": (
        "gpu-single",
        ("engines.generator.model=Qwen/Qwen2.5-7B",),
        ("engines.generator.model", "Qwen/Qwen2.5-7B", "hf://"),
    ),
    "an address without its server": (
        "gpu-single",
        ("engines.judge.kind=url",),
        ("engines.judge.url.baseUrl", "empty", "http://llm.models:8000"),
    ),
    "an address without a model": (
        "gpu-single",
        ("engines.judge.kind=url", "engines.judge.url.baseUrl=http://x:1"),
        ("engines.judge.url.model", "empty", "name at that server"),
    ),
    "two evaluators": ("gpu-prod", ("evaluator.replicas=2",), ("evaluator.replicas", "is 2", "one process")),
    "a searcher without a retriever": (
        "dev-cpu",
        ("retriever.enabled=false",),
        ("engines.searcher.kind", "policyServer", "retriever.externalTarget"),
    ),
    "settings of a searcher that is not there": (
        "gpu-single",
        ("generator.config.searcher.temperature=1",),
        ("generator.config.searcher", "engines.searcher.kind"),
    ),
    "an ingress without a host": (
        "dev-cpu",
        ("ingress.enabled=true",),
        ("ingress.host", "empty", "host name"),
    ),
    "routes without a gateway": (
        "dev-cpu",
        ("gateway.enabled=true",),
        ("gateway.parentRefs", "empty list", "name: NAME"),
    ),
    "no memory limit": (
        "dev-cpu",
        ("workload.resources.limits.memory=null",),
        ("resources.limits.memory", "empty", "4Gi"),
    ),
    "a smaller maximum than minimum": (
        "gpu-prod",
        ("retriever.autoscaling.minReplicas=9",),
        ("retriever.autoscaling.maxReplicas", "is 8", "at least 9"),
    ),
    "an eviction budget of no percent": (
        "dev-cpu",
        ("retriever.pdb.maxUnavailable=0%",),
        ("retriever.pdb.maxUnavailable", "is 0%", "at least 1"),
    ),
    "memory that no LLM fits in": (
        "gpu-single",
        (
            "engines.searcher.kind=vllm",
            "engines.searcher.model=/data/models/a",
            "engines.searcher.gpu.profile=full",
            "engines.searcher.gpu.count=1",
        ),
        ("engines.searcher.resources.limits.memory", "is 4Gi", "at least 8Gi"),
    ),
    "an eviction budget that forbids every drain": (
        "dev-cpu",
        ("retriever.pdb.maxUnavailable=0",),
        ("retriever.pdb.maxUnavailable", "is 0", "at least 1"),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_wrong_value_is_refused_with_key_value_and_advice(rule: str) -> None:
    preset, assignments, words = RULES[rule]
    done = template(preset, *assignments)
    assert done.returncode != 0, "it rendered"
    assert "searchrl: " in done.stderr, done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in: {done.stderr}"


def test_a_release_name_that_would_be_cut_is_refused() -> None:
    done = template("dev-cpu", release="a" * 41)
    assert done.returncode != 0 and "at most 40 characters" in done.stderr


SCHEMA = {
    "a misspelt key": ("retriever.replcas=2", "replcas"),
    "a misspelt key of an engine": ("engines.judge.vllm.dtyp=auto", "dtyp"),
    "a misspelt setting": ("generator.config.limits.max_answer=3", "max_answer"),
    "a key of the first level": ("retreiver.enabled=false", "retreiver"),  # codespell:ignore
    "a setting that the chart decides": ("retriever.config.index_dir=/x", "index_dir"),
    "a secret in values": ("generator.config.engine.key=abc", "key"),
    "a wrong setting": ("generator.config.context.top_k=0", "top_k"),
    "an unknown kind of engine": ("engines.generator.kind=tgi", "/engines/generator/kind"),
    "an engine where it cannot be": ("engines.generator.kind=policyServer", "/engines/generator/kind"),
    "an unknown mode of the cache": ("redis.mode=sentinel", "/redis/mode"),
    "an unknown access mode": ("storage.accessMode=RWX", "/storage/accessMode"),
    "a digest that is none": ("retriever.image.digest=abc", "/retriever/image/digest"),
    "a number as text": ("retriever.replicas=two", "/retriever/replicas"),
    "a root user": ("security.runAsUser=0", "/security/runAsUser"),
    "no pause before SIGTERM": ("workload.preStopSeconds=0", "/workload/preStopSeconds"),
    "a quantity that is none": ("workload.resources.limits.memory=lots", "/workload/resources/limits/memory"),
    "a place outside the layout": ("storage.fetch[0].to=../etc", "/storage/fetch/0/to"),
    "a ratio above 1": ("tracing.ratio=2", "/tracing/ratio"),
}


@pytest.mark.parametrize("case", SCHEMA)
def test_the_schema_refuses(case: str) -> None:
    assignment, word = SCHEMA[case]
    done = template("dev-cpu", assignment)
    assert done.returncode != 0 and "schema" in done.stderr and word in done.stderr, done.stderr


def test_every_object_of_the_schema_is_closed() -> None:
    import json

    def open_objects(node: object, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for number, item in enumerate(node) for found in open_objects(item, f"{path}/{number}")]
        if not isinstance(node, dict):
            return []
        here = [path] if isinstance(node.get("properties"), dict) and "additionalProperties" not in node else []
        return here + [found for key, value in node.items() for found in open_objects(value, f"{path}/{key}")]

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert not [path for path in open_objects(schema, "") if not path.endswith("/properties")]
