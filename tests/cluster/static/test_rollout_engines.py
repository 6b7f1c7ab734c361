"""A training run brings its vLLM servers: valid, closed to all but its trainer, and started as it needs them."""

import json
from typing import Any

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from searchrl.cli.main import run
from searchrl.jobs.rollout_engines import PLUGIN, START_SECONDS, engine_name, engine_urls
from services.trainer.engines.vllm.build import SERVER_ARGUMENTS
from services.trainer.engines.vllm.weight_transfer import PLUGIN as PLUGIN_HERE
from services.trainer.engines.vllm.weight_transfer import SharedFsTransfer
from services.trainer.settings import load_run_config
from tests.cluster.static.chart_rendering import NAMESPACE, TOGGLES, of_kind, render
from tests.cluster.static.dockerfile_reading import ROOT, service_file
from tests.cluster.static.policy_evaluator import Pod, allowed
from tests.cluster.static.test_jobs_manifests import VERSIONS, validate

BACKENDS = {"job": (), "indexed": ("--ranks", "2"), "rayjob": ("--ranks", "2", "--backend", "rayjob")}
Manifest = dict[str, Any]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Manifest]:
    assert run(["submit", "train", *arguments, "--dry-run"]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def engines_of(manifests: list[Manifest]) -> tuple[Manifest, Manifest, Manifest]:
    """The Service, the NetworkPolicy and the Job."""
    _, *engines = manifests
    assert [manifest["kind"] for manifest in engines] == ["Service", "NetworkPolicy", "Job"]
    return engines[0], engines[1], engines[2]


def pod_of(job: Manifest) -> Manifest:
    return job["spec"]["template"]["spec"]


def variables(job: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod_of(job)["containers"][0]["env"]}


def assigned(trainer: Manifest) -> dict[str, str]:
    command = pod_of(trainer)["containers"][0]["command"]
    return dict(text.split("=", 1) for text in command[command.index("--set") :] if text != "--set")


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_are_valid(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    for gpus in ("0", "2"):
        for manifest in engines_of(printed(capsys, "--engines", "2", "--engine-gpus", gpus)):
            validate(manifest, version)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_brings_the_same_engines_and_names_them(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    alone = printed(capsys, "--engines", "3")
    trainer, *engines = printed(capsys, "--engines", "3", *BACKENDS[backend])
    assert engines == alone[1:]
    assert trainer["metadata"]["labels"]["searchrl.io/engines"] == engines[-1]["metadata"]["name"]
    urls = json.dumps(engine_urls(engines[-1]["metadata"]["name"], 3))
    assert urls in yaml.dump(trainer, width=10**6)


def test_the_trainer_finds_each_engine_under_the_name_that_its_pod_gets(capsys: pytest.CaptureFixture[str]) -> None:
    """A pod of an indexed Job is called JOB-INDEX, and is in DNS below the Service that it names as its subdomain."""
    service, _, job = engines_of(manifests := printed(capsys, "--engines", "2", "--run-id", "first"))
    name = job["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["parallelism"] == 2
    assert pod_of(job)["subdomain"] == service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    urls = json.loads(assigned(manifests[0])["engine.urls"])
    assert urls == [f"http://{name}-0.{name}:8000", f"http://{name}-1.{name}:8000"]


@pytest.mark.parametrize("release", ["searchrl", "r" * 53])
def test_host_names_are_short_enough(release: str) -> None:
    name = engine_name(release, "x" * 50)
    assert len(f"{name}-999") <= 63
    assert name != engine_name(release, "x" * 49 + "y")


def test_the_settings_are_those_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    (trainer, *_) = printed(capsys, "--engines", "2", "--engine-gpus", "0")
    texts = [f"{name}={value}" for name, value in assigned(trainer).items() if not name.startswith("listen.")]
    engine: Any = load_run_config(None, texts).engine
    assert engine.kind == "vllm" and len(engine.urls) == 2
    assert engine.weight_transfer.backend == "shared_fs"
    assert str(engine.weight_transfer.folder) == "/data/runs/small-world/engine"
    assert engine.server.dtype == "float32"
    assert engine.server.start_seconds == START_SECONDS


def test_servers_are_started_as_the_trainer_starts_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = printed(capsys, "--engines", "1")
    command = pod_of(job)["containers"][0]["command"]
    flags = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
    wanted = (*SERVER_ARGUMENTS, *SharedFsTransfer.arguments)
    assert dict(zip(wanted[::2], wanted[1::2], strict=True)).items() <= flags.items()
    assert flags["--generation-config"] == "vllm"
    found = variables(job)
    assert {**SharedFsTransfer.environment, "PYTHONPATH": PLUGIN}.items() <= found.items()


def test_the_image_has_the_plugin_where_engines_look_for_it() -> None:
    recipe = service_file("generator")
    (install,) = [text for text in recipe.stage("app").all("RUN") if "pip install" in text]
    folder = install.split("--target ")[1].split()[0]
    assert f"--from=app {folder} {folder}" in recipe.final.all("COPY")
    here = PLUGIN_HERE.relative_to(ROOT)
    assert f"{folder}/{here}" == PLUGIN
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    plugin = {str(path.relative_to(ROOT)) for path in PLUGIN_HERE.rglob("*") if "__pycache__" not in path.parts}
    files = {path for path in plugin if (ROOT / path).is_file()}
    assert any(path.endswith("entry_points.txt") for path in files)
    assert files <= packed


def test_engines_on_gpus_request_them_and_tolerate_their_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = printed(capsys, "--engines", "1", "--engine-gpus", "2", "--node-selector", "pool=a100")
    server = pod_of(job)["containers"][0]
    assert server["resources"]["requests"]["nvidia.com/gpu"] == server["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "--tensor-parallel-size=2" in server["command"] and "--dtype=bfloat16" in server["command"]
    profile = render("gpu-prod")
    (deployment,) = [d for d in of_kind(profile, "Deployment") if d["metadata"]["name"] == "rel-engine-searcher"]
    assert pod_of(job)["tolerations"] == deployment["spec"]["template"]["spec"]["tolerations"]
    assert pod_of(job)["nodeSelector"] == {"pool": "a100"}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in server["volumeMounts"]


def test_engines_on_cpus_have_a_cache_and_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", "1", "--engine-gpus", "0", "--engine-kv-cache-gib", "4", "--gpus", "1"]
    trainer, *_, job = printed(capsys, *arguments)
    server = pod_of(job)["containers"][0]
    assert server["resources"] == {"requests": {"cpu": "1", "memory": "7Gi"}, "limits": {"memory": "7Gi"}}
    assert variables(job)["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert "tolerations" not in pod_of(job)
    assert pod_of(trainer)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_engines_read_the_storage_and_have_no_rights(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = printed(capsys, "--engines", "1", "--auth-secret", "keys", "--tls-secret", "tls")
    spec = pod_of(job)
    (server,) = spec["containers"]
    mounts = {mount["name"]: mount for mount in server["volumeMounts"]}
    assert set(mounts) == {"data", "tmp", "shared-memory"} == {volume["name"] for volume in spec["volumes"]}
    assert mounts["data"]["readOnly"] is True
    assert spec["automountServiceAccountToken"] is False
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert [server[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")] == ["/health"] * 2


def test_engines_are_replaced_when_they_are_lost_and_may_complete(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = printed(capsys, "--engines", "1")
    assert pod_of(job)["restartPolicy"] == "OnFailure"
    assert job["spec"]["podReplacementPolicy"] == "TerminatingOrFailed"
    assert pod_of(job)["containers"][0]["command"][:3] == ["python", "-m", "services.trainer.runs.serve_engine"]


def pod(name: str, manifest: Manifest) -> Pod:
    return Pod(name, manifest["spec"]["template"]["metadata"]["labels"], NAMESPACE)


@pytest.mark.parametrize("with_release", [True, False])
def test_only_the_trainer_of_the_run_reaches_its_engines(
    with_release: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    release = ("--release", "rel")
    trainer, *_, policy, job = printed(capsys, "--engines", "1", "--run-id", "one", *release)
    other_trainer, *_, other_policy, other_job = printed(capsys, "--engines", "1", "--run-id", "two", *release)
    assert run(["submit", "evaluate", "--run-id", "one", *release, "--dry-run"]) == 0
    evaluation = yaml.safe_load(capsys.readouterr().out)
    policies = [policy, other_policy, *(of_kind(render("dev-cpu"), "NetworkPolicy") if with_release else [])]
    engine, trainer_pod = pod("engine", job), pod("trainer", trainer)
    assert allowed(policies, NAMESPACE, trainer_pod, engine, 8000)
    assert not allowed(policies, NAMESPACE, trainer_pod, engine, 8080)
    for intruder in (pod("other", other_trainer), pod("evaluation", evaluation), pod("engine of two", other_job)):
        assert not allowed(policies, NAMESPACE, intruder, engine, 8000), intruder.name
    assert not allowed(policies, NAMESPACE, Pod("prometheus", {}, "monitoring"), engine, 8000)
    retriever = {**engine.labels, "app.kubernetes.io/component": "retriever"}
    for port in (8000, 8080, 9090):
        assert not allowed(policies, NAMESPACE, engine, Pod("retriever", retriever, NAMESPACE), port)
        assert not allowed(policies, NAMESPACE, engine, trainer_pod, port)


@pytest.mark.parametrize(("toggle", "ports"), [("monitoring", {8080}), ("scrape annotations", {8080}), (None, set())])
def test_prometheus_reaches_the_metrics_alone_and_only_while_monitoring_is_on(
    toggle: str | None, ports: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The port of the server has routes that replace weights."""
    *_, policy, job = printed(capsys, "--engines", "1", "--release", "rel")
    policies = [policy, *of_kind(render("dev-cpu", *(TOGGLES[toggle] if toggle else ())), "NetworkPolicy")]
    prometheus, engine = Pod("prometheus", {}, "monitoring"), pod("engine", job)
    assert {port for port in (8000, 8080) if allowed(policies, NAMESPACE, prometheus, engine, port)} == ports
    neighbor = Pod("neighbor", {**engine.labels, "app.kubernetes.io/component": "retriever"}, NAMESPACE)
    assert not allowed(policies, NAMESPACE, neighbor, engine, 8080)


def test_engines_are_scraped_at_the_port_of_their_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = printed(capsys, "--engines", "1", "--release", "rel")
    monitors = of_kind(render("dev-cpu", *TOGGLES["monitoring"]), "PodMonitor")
    labels = job["spec"]["template"]["metadata"]["labels"]
    (monitor,) = [each for each in monitors if each["spec"]["selector"]["matchLabels"].items() <= labels.items()]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (server,) = pod_of(job)["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    command = server["command"]
    assert ports[endpoint["port"]] == int(command[command.index("--metrics-port") + 1])
    # every pod of the Job serves; series name their run
    assert [rule["targetLabel"] for rule in endpoint["relabelings"]] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--engine-gpus", "1"], "--engine-gpus needs --engines"),
        (["--engine-memory", "8Gi"], "--engine-memory needs --engines"),
        (["--engines", "0"], "leave it out"),
        (["--engines", "1", "--engine-gpus", "-1"], "cannot be negative"),
        (["--engines", "1", "--engine-kv-cache-gib", "4"], "--engine-gpus 0"),
        (["--engines", "1", "--queue", "research"], "Kueue would admit"),
        (["--engines", "1", "--image", "registry.example/trainer:1"], "add --engine-image"),
        (["--engines", "1", "--set", "engine.urls=[http://a:8000]"], "take it from that flag"),
        (["--engines", "1", "--set", "engine.placement=ray"], "take it from that flag"),
        (["--engines", "1", "--set", "engine.server.dtype=float16"], "--engine-dtype"),
        (["--engines", "1", "--model", "/home/me/model"], "jobs see nothing but /data"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "train", *arguments, "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert sentence in message and len(message.splitlines()) == 1


def test_engines_belong_to_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "evaluate", "--engines", "1", "--dry-run"]) == 2
    assert "--engines belongs to: train" in capsys.readouterr().err


def test_engines_load_the_model_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--model", "mine"], ["--set", "model=/data/models/mine"]):
        *_, job = printed(capsys, "--engines", "1", *given)
        command = pod_of(job)["containers"][0]["command"]
        assert command.count("/data/models/mine") == 2
