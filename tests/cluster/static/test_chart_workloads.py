"""The rendered pods start, drain, scale, spread over zones and land on nodes as the values say."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from searchrl.storage.sources import SOURCES
from tests.cluster.static.chart_rendering import (
    CASES,
    CHART,
    PRESETS,
    TOGGLES,
    named,
    of_kind,
    pods,
    render,
    template,
)

ENGINE = "rel-engine-generator"


def pod_of(documents: tuple[dict[str, Any], ...], name: str) -> dict[str, Any]:
    return named(documents, "Deployment", name)["spec"]["template"]["spec"]


@pytest.mark.parametrize(("preset", "toggle"), CASES)
def test_every_service_has_probes_and_time_to_drain(preset: str, toggle: str) -> None:
    for deployment in of_kind(render(preset, *TOGGLES[toggle]), "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        (main,) = spec["containers"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(main)
        pause = main["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert spec["terminationGracePeriodSeconds"] >= pause + 5
        budget = main["startupProbe"]["periodSeconds"] * main["startupProbe"]["failureThreshold"]
        assert deployment["spec"]["progressDeadlineSeconds"] >= budget + 120 > deployment["spec"]["minReadySeconds"]


@pytest.mark.parametrize("seconds", [10, 61, 600])
def test_the_startup_budget_is_what_the_probe_waits(seconds: int) -> None:
    spec = pod_of(render("dev-cpu", f"retriever.startupBudgetSeconds={seconds}"), "rel-retriever")
    probe = spec["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] == math.ceil(seconds / probe["periodSeconds"])


def test_readiness_is_asked_over_grpc_and_with_tls_over_https() -> None:
    plain = pod_of(render("dev-cpu"), "rel-retriever")["containers"][0]["readinessProbe"]
    assert plain["grpc"] == {"port": 9090, "service": "searchrl.contracts.v1.Retriever"}
    secure = pod_of(render("dev-cpu", *TOGGLES["TLS"]), "rel-retriever")["containers"][0]["readinessProbe"]
    assert secure["httpGet"] == {"path": "/readyz", "port": "http", "scheme": "HTTPS"}


def test_vllm_drains_as_long_as_the_pod_lives() -> None:
    spec = pod_of(render("gpu-single", "engines.generator.drainSeconds=90"), ENGINE)
    assert "--shutdown-timeout=90" in spec["containers"][0]["args"]
    assert spec["terminationGracePeriodSeconds"] == 5 + 90 + 5 + 5


@pytest.mark.parametrize("preset", ["gpu-single", "gpu-prod", "mig", "gpu-prod+spot"])
def test_vllm_is_ready_after_it_has_generated(preset: str) -> None:
    (main,) = pod_of(render(preset), ENGINE)["containers"]
    script = "/etc/searchrl/scripts/check_generation.py"
    model = "qwen2.5-14b-instruct" if preset.startswith("gpu-prod") else "qwen2.5-7b-instruct"
    assert main["startupProbe"]["exec"]["command"] == ["python", script, model]
    assert {"name": "scripts", "mountPath": "/etc/searchrl/scripts", "readOnly": True} in main["volumeMounts"]
    assert (CHART / "files" / "check_generation.py").exists()


def test_vllm_on_cpus_gets_shared_memory_and_compiles_nothing() -> None:
    values = ("engines.searcher.kind=vllm", "engines.searcher.vllm.cpuKvCacheGib=1")
    spec = pod_of(render("dev-cpu", *values), "rel-engine-searcher")
    assert "--enforce-eager" in spec["containers"][0]["args"]
    assert {"name": "TORCHDYNAMO_DISABLE", "value": "1"} in spec["containers"][0]["env"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]
    on_gpu = pod_of(render("gpu-single"), ENGINE)
    assert "--enforce-eager" not in on_gpu["containers"][0]["args"]
    assert "shared-memory" not in {volume["name"] for volume in on_gpu["volumes"]}


@pytest.mark.parametrize(("protocol", "path"), [("grpc", ""), ("http/protobuf", "/v1/traces")])
def test_vllm_sends_its_traces_where_the_services_do(protocol: str, path: str) -> None:
    traced = (*TOGGLES["tracing"], f"tracing.protocol={protocol}")
    (main,) = pod_of(render("gpu-single", *traced), ENGINE)["containers"]
    assert f"--otlp-traces-endpoint=http://otel.monitoring:4317{path}" in main["args"]
    assert {"name": "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "value": protocol} in main["env"]
    plain = pod_of(render("gpu-single"), ENGINE)["containers"][0]
    assert not any("otlp" in argument for argument in plain["args"])


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_an_autoscaled_service_has_no_replicas_to_fight_over(kind: str) -> None:
    documents = render("gpu-prod", *TOGGLES[kind])
    for name in ("rel-retriever", "rel-generator"):
        assert "replicas" not in named(documents, "Deployment", name)["spec"]
        scaler = named(documents, "HorizontalPodAutoscaler" if kind == "hpa" else "ScaledObject", name)
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
    assert named(documents, "Deployment", "rel-evaluator")["spec"]["replicas"] == 1


def test_keda_sums_over_pods_and_falls_back() -> None:
    for scaler in of_kind(render("gpu-prod", *TOGGLES["keda"]), "ScaledObject"):
        (trigger,) = scaler["spec"]["triggers"]
        assert trigger["metadata"]["query"].startswith("sum(") and trigger["metadata"]["ignoreNullValues"] == "false"
        assert scaler["spec"]["fallback"]["replicas"] >= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_gpu_pods_go_in_place_and_others_beside(preset: str) -> None:
    for deployment in of_kind(render(preset), "Deployment"):
        resources = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
        has_gpu = any("nvidia.com/" in name for name in resources["limits"])
        strategy = deployment["spec"]["strategy"]
        if deployment["metadata"]["name"] == "rel-evaluator":
            assert strategy == {"type": "Recreate"}
        else:
            assert strategy["rollingUpdate"]["maxSurge"] == (0 if has_gpu else 1)


@pytest.mark.parametrize(
    ("preset", "name", "resource", "count", "label"),
    [
        ("gpu-single", ENGINE, "nvidia.com/gpu", "1", "nvidia.com/gpu.present"),
        ("gpu-prod", ENGINE, "nvidia.com/gpu", "2", "nvidia.com/gpu.present"),
        ("gpu-prod", "rel-engine-searcher", "nvidia.com/gpu", "1", "nvidia.com/gpu.present"),
        ("mig", ENGINE, "nvidia.com/mig-3g.40gb", "1", "nvidia.com/mig.capable"),
        ("mig", "rel-engine-searcher", "nvidia.com/mig-1g.20gb", "1", "nvidia.com/mig.capable"),
        ("mig+spot", ENGINE, "nvidia.com/mig-3g.40gb", "1", "nvidia.com/mig.capable"),
    ],
)
def test_engines_ask_for_the_devices_of_their_profile(
    preset: str, name: str, resource: str, count: str, label: str
) -> None:
    spec = pod_of(render(preset), name)
    resources = spec["containers"][0]["resources"]
    assert resources["limits"][resource] == resources["requests"][resource] == count
    assert label in spec["nodeSelector"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]


def test_devices_by_claim_come_with_their_template() -> None:
    documents = render("gpu-single", *TOGGLES["DRA"])
    spec = pod_of(documents, "rel-engine-searcher")
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    (template,) = of_kind(documents, "ResourceClaimTemplate")
    assert spec["resourceClaims"][0]["resourceClaimTemplateName"] == template["metadata"]["name"]


def test_spot_engines_stop_within_the_notice_and_tolerate_the_taints() -> None:
    for name in (ENGINE, "rel-engine-searcher"):
        spec = pod_of(render("gpu-prod+spot"), name)
        assert spec["terminationGracePeriodSeconds"] <= 30
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= {
            toleration["key"] for toleration in spec["tolerations"]
        }
    assert "tolerations" not in pod_of(render("gpu-prod+spot"), "rel-retriever")


@pytest.mark.parametrize("preset", PRESETS)
def test_pods_are_spread_over_zones_and_nodes_and_can_be_drained(preset: str) -> None:
    documents = render(preset)
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in of_kind(documents, "PodDisruptionBudget")}
    for deployment in of_kind(documents, "Deployment"):
        spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert [rule["topologyKey"] for rule in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        assert budgets[deployment["metadata"]["name"]]["maxUnavailable"] == 1


@pytest.mark.parametrize(("preset", "is_together"), [("dev-cpu", True), ("gpu-single", True), ("gpu-prod", False)])
def test_storage_of_one_node_keeps_its_users_on_one_node(preset: str, is_together: bool) -> None:
    documents = render(preset)
    for name, metadata, spec in pods(documents):
        if not any("persistentVolumeClaim" in volume for volume in spec["volumes"]):
            continue
        assert ("podAffinity" in spec.get("affinity", {})) is is_together, name
        assert metadata["labels"]["searchrl.io/data"] == "rel-data"


@pytest.mark.parametrize(
    ("preset", "toggle", "anchor"),
    [
        ("dev-cpu", "as it is", None),
        ("gpu-single", "as it is", "engine-generator"),
        ("gpu-single", "generator by URL", None),
    ],
)
def test_on_storage_of_one_node_the_pods_without_devices_follow_the_one_with_them(
    preset: str, toggle: str, anchor: str | None
) -> None:
    values = () if toggle == "as it is" else (*TOGGLES[toggle], "engines.generator.gpu.count=0",
                                              "engines.generator.gpu.profile=none")  # fmt: skip
    for name, metadata, spec in pods(render(preset, *values)):
        if "podAffinity" in spec.get("affinity", {}):
            (term,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            followed = term["labelSelector"]["matchLabels"].get("app.kubernetes.io/component")
            is_anchor = metadata["labels"]["app.kubernetes.io/component"] == anchor
            assert followed == (None if is_anchor else anchor), name


@pytest.mark.parametrize(
    ("model", "folder", "fetched", "claim"),
    [
        ("/data/models/a", "/data/models/a", False, None),
        ("file:///data/models/a", "/data/models/a", False, None),
        ("pvc://weights/a/b", "/mnt/weights/a/b", False, "weights"),
        ("hf://org/Model.Name@main", "/data/models/model.name-main-", True, None),
        ("s3://bucket/x/y", "/data/models/y-", True, None),
        ("gs://bucket/x/y", "/data/models/y-", True, None),
        ("az://container/x/y", "/data/models/y-", True, None),
    ],
)
def test_a_model_is_found_fetched_or_mounted_by_its_address(
    model: str, folder: str, fetched: bool, claim: str | None
) -> None:
    documents = render("gpu-single", f"engines.generator.model={model}")
    spec = pod_of(documents, ENGINE)
    assert spec["containers"][0]["args"][0].startswith(folder)
    jobs = [job for job in of_kind(documents, "Job") if "job-fetch" in job["metadata"]["name"]]
    assert bool(jobs) is fetched
    if fetched:
        (container,) = jobs[0]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == [model, spec["containers"][0]["args"][0]]
    claims = {
        volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume
    }
    assert claims == {"rel-data"} | ({claim} if claim else set())


@pytest.mark.parametrize("scheme", [*sorted(SOURCES), "ftp"])
def test_files_are_fetched_from_every_source_but_without_encryption(scheme: str) -> None:
    done = template("dev-cpu", f"storage.fetch[0].uri={scheme}://org/name", "storage.fetch[0].to=corpora/mine")
    is_accepted = scheme not in ("http", "ftp")
    assert (done.returncode == 0) is is_accepted, done.stderr


def test_jobs_have_the_labels_that_an_identity_of_the_cloud_asks_for() -> None:
    label = r"workload.podLabels.azure\.workload\.identity/use=identity"
    for job in of_kind(render("dev-cpu", label, *TOGGLES["fetch"]), "Job"):
        assert job["spec"]["template"]["metadata"]["labels"]["azure.workload.identity/use"] == "identity"


def test_a_changed_job_gets_another_name() -> None:
    names = {
        of_kind(render("dev-cpu", f"smallWorld.seed={seed}", f"image.tag={tag}"), "Job")[0]["metadata"]["name"]
        for seed, tag in ((1, "a"), (2, "a"), (1, "b"))
    }
    assert len(names) == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_the_claim_outlives_the_release(preset: str) -> None:
    (claim,) = of_kind(render(preset), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not of_kind(render(preset, "storage.existingClaim=mine"), "PersistentVolumeClaim")


def test_routes_lead_to_the_generator() -> None:
    documents = render("dev-cpu", *TOGGLES["gateway"], *TOGGLES["ingress"])
    for kind, port in (("HTTPRoute", 8080), ("GRPCRoute", 9090)):
        rule = named(documents, kind, "rel-generator")["spec"]["rules"][0]
        assert rule["backendRefs"] == [{"name": "rel-generator", "port": port}]
    path = named(documents, "Ingress", "rel-generator")["spec"]["rules"][0]["http"]["paths"][0]
    assert path["backend"]["service"] == {"name": "rel-generator", "port": {"name": "http"}}


def test_traces_carry_their_service_and_go_to_the_collector() -> None:
    for name in ("retriever", "generator", "evaluator"):
        environment = {
            variable["name"]: variable.get("value")
            for variable in pod_of(render("dev-cpu", *TOGGLES["tracing"]), f"rel-{name}")["containers"][0]["env"]
        }
        assert environment["OTEL_SERVICE_NAME"] == f"searchrl-{name}"
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel.monitoring:4317"
        assert environment["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio"


def test_every_service_that_has_metrics_is_scraped_once() -> None:
    documents = render("gpu-prod", *TOGGLES["monitoring"])
    monitored = {monitor["metadata"]["name"] for monitor in of_kind(documents, "PodMonitor")}
    serving = {deployment["metadata"]["name"] for deployment in of_kind(documents, "Deployment")}
    assert monitored == serving | {"rel-trainer", "rel-engine-rollout"}
    assert not of_kind(documents, "ServiceMonitor")


def test_on_storage_of_one_node_everything_goes_where_the_devices_are() -> None:
    documents = render("gpu-single")
    for name, _, spec in pods(documents):
        if any("persistentVolumeClaim" in volume for volume in spec["volumes"]):
            assert spec["nodeSelector"]["nvidia.com/gpu.present"] == "true", name
            assert spec["tolerations"][0]["key"] == "nvidia.com/gpu", name
    spread = render("gpu-prod")
    assert "nodeSelector" not in pod_of(spread, "rel-retriever")


def test_every_value_is_read_by_a_template() -> None:
    text = "".join(path.read_text() for path in CHART.rglob("templates/**/*") if path.is_file())
    unread = [key for key in leaf_keys(yaml.safe_load((CHART / "values.yaml").read_text())) if key not in text]
    assert not unread


def leaf_keys(node: dict[str, Any]) -> Iterator[str]:
    for key, value in node.items():
        if key not in ("gpuProfiles", "requests", "limits", "podLabels", "resources"):
            yield key
            if isinstance(value, dict):
                yield from leaf_keys(value)


def test_a_retriever_waits_for_its_index_unless_it_may_build_one() -> None:
    (waiting,) = pod_of(render("dev-cpu", "retriever.index.name=wiki"), "rel-retriever")["initContainers"]
    assert waiting["args"][-1] == "/data/indexes/wiki/current"
    (waiting,) = pod_of(render("dev-cpu", "retriever.index.uri=pvc://shelf/wiki"), "rel-retriever")["initContainers"]
    assert waiting["args"][-1] == "/mnt/shelf/wiki/current"
    assert "initContainers" not in pod_of(render("dev-cpu", "retriever.builds=true"), "rel-retriever")
