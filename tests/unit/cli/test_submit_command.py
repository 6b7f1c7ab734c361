"""``searchrl submit`` prints the manifests of deploy/jobs and passes settings, devices and keys on to the pods."""

from pathlib import Path

import pytest
import yaml

from searchrl.cli.main import run
from searchrl.jobs.catalog import CATALOG
from services.trainer.sft.__main__ import parse_arguments
from services.trainer.sft.settings import load_sft_config

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "jobs"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    (manifest,) = printed_all(capsys, *arguments)
    return manifest


def printed_all(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert run(["submit", *arguments, "--dry-run"]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["submit", *arguments, "--dry-run"]) == 2
    return capsys.readouterr().err


def command(manifest: dict) -> list[str]:
    return manifest["spec"]["template"]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_command_line_prints_the_files_of_deploy_jobs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed_all(capsys, *CATALOG[name].submit.split())
    assert found == list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_settings_of_a_run_reach_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--preset", "s3", "--model", "qwen", "--questions", "nq/train.jsonl", "--run-id", "nq-1"]
    arguments += ["--baseline", "nq"]
    found = command(printed(capsys, *arguments, "--set", "steps=3", "--set", "update.optim.learning_rate=1e-5"))
    assigned = dict(text.split("=", 1) for text in found[found.index("--set") :] if text != "--set")
    assert assigned["preset"] == "s3" and assigned["steps"] == "3"
    assert assigned["update.optim.learning_rate"] == "1e-5"
    assert assigned["model"] == "/data/models/qwen"
    assert assigned["output"] == "/data/runs/nq-1"
    assert assigned["reward.baseline_file"] == "/data/baselines/nq/baseline.json"


def test_a_mixture_replaces_the_questions_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    sets = "mixture.nq.questions=/data/questions/nq.jsonl"
    for preset in ((), ("--preset", "search_r1_grpo", "--model", "qwen")):
        found = command(printed(capsys, "train", *preset, "--set", sets))
        assert sets in found and not [text for text in found if text.startswith("questions=")]


def test_settings_of_other_steps_are_flags_of_their_programs(capsys: pytest.CaptureFixture[str]) -> None:
    found = command(printed(capsys, "index", "--set", "kind=dense", "--set", "skip_bad_rows=true"))
    assert found[-3:] == ["--kind", "dense", "--skip-bad-rows"]


def test_an_index_on_gpus_is_encoded_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = command(printed(capsys, "index", "--gpus", "1", "--set", "kind=dense"))
    assert found[-2:] == ["--device", "cuda"]


def test_a_queue_suspends_and_labels_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    for backend in ([], ["--ranks", "2", "--backend", "rayjob"]):
        manifest = printed(capsys, "train", *backend, "--queue", "research", "--queue-priority", "high")
        assert manifest["spec"]["suspend"] is True
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"


def test_devices_and_places_reach_every_pod(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "1", "--toleration", "nvidia.com/gpu:NoSchedule", "--node-selector", "pool=a100"]
    manifest = printed(capsys, "train", "--ranks", "2", *arguments, "--runtime-class", "nvidia")
    pod = manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["nodeSelector"] == {"pool": "a100"} and pod["runtimeClassName"] == "nvidia"
    assert "learner.device=cuda" in pod["containers"][0]["command"]


def test_the_head_of_a_ray_job_reserves_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Its pod runs the trainer, and the workers hold the learner's ranks."""
    manifest = printed(capsys, "train", "--ranks", "2", "--backend", "rayjob", "--gpus", "1")
    cluster = manifest["spec"]["rayClusterSpec"]
    pods = [part["template"]["spec"] for part in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0])]
    assert ["nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"] for pod in pods] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "ranks", "pods", "workers"),
    [(["--gpus", "1"], 2, 2, "1"), (["--gpus", "1"], 1, 1, "0"), ([], 2, 3, "2")],
)
def test_an_indexed_job_has_no_more_devices_than_ranks(
    capsys: pytest.CaptureFixture[str], arguments: list[str], ranks: int, pods: int, workers: str
) -> None:
    """All its pods are equal, so with devices the head holds a rank, too."""
    spec = printed(capsys, "train", "--ranks", str(ranks), *arguments)["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (pods, pods, "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    launcher = container["command"][: container["command"].index("--")]
    assert launcher[launcher.index("--workers") + 1] == workers
    assert ("--rank-on-head" in launcher) == ("nvidia.com/gpu" in container["resources"]["limits"]) == bool(arguments)


def test_keys_are_mounted_where_a_secret_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pod = printed(capsys, "train", "--auth-secret", "keys")["spec"]["template"]["spec"]
    assert {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o440}} in pod["volumes"]
    assert "services.key_file=/etc/searchrl/keys/client-key" in pod["containers"][0]["command"]
    pod = printed(capsys, "evaluate", "--auth-secret", "keys")["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][-4:-2] == ["--key-file", "/etc/searchrl/keys/client-key"]


@pytest.mark.parametrize("arguments", [["baseline"], ["sft"], ["train"], ["train", "--ranks", "2"], ["evaluate"]])
def test_steps_that_call_services_trust_the_authority_of_their_certificates(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pod = printed(capsys, *arguments, "--tls-secret", "certificates")["spec"]["template"]["spec"]
    secret = {"secretName": "certificates", "items": [{"key": "ca.crt", "path": "ca.crt"}], "defaultMode": 0o440}
    assert {"name": "tls", "secret": secret} in pod["volumes"]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert {"name": "SEARCHRL_TLS_AUTHORITY", "value": "/etc/searchrl/tls/ca.crt"} in container["env"]
        assert {"name": "tls", "mountPath": "/etc/searchrl/tls", "readOnly": True} in container["volumeMounts"]


def test_a_container_of_the_same_pod_is_called_without_tls(capsys: pytest.CaptureFixture[str]) -> None:
    found = command(printed(capsys, "evaluate", "--tls-secret", "certificates"))
    assert found[found.index("--generator") + 1] == "plain://127.0.0.1:9091"
    assert found[found.index("--retriever") + 1] == "searchrl-retriever-headless:9090"


def test_rows_of_ones_own_are_trained_on_without_services(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--data", "chats.jsonl", "/data/runs/first/best.parquet"]
    flags = ["--model", "mine", "--run-id", "second", "--gpus", "1", "--set", "training.epochs=2"]
    manifest = printed(capsys, "sft", *files, *flags)
    pod = manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] == 120
    parsed = parse_arguments(command(manifest)[3:])
    config = load_sft_config(None, parsed.set)
    assert parsed.unfinished_exit_code == 143
    assert [str(path) for path in config.data] == ["/data/questions/chats.jsonl", "/data/runs/first/best.parquet"]
    assert (str(config.model), str(config.output)) == ("/data/models/mine", "/data/runs/second")
    assert (config.training.epochs, config.learner.device, config.name) == (2, "cuda", "second")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--corpus", "x"], "--corpus belongs to: index"),
        (["train", "--preset", "s3"], "--preset s3 needs --model and --questions"),
        (["train", "--backend", "rayjob"], "needs --ranks"),
        (["train", "--preset", "s3", "--model", "m", "--questions", "q.jsonl"], "needs --baseline"),
        (["train", "--gpus", "2"], "--ranks 2 --gpus 1"),
        (["evaluate", "--gpus", "1"], "evaluate computes on CPUs"),
        (["sft", "--gpus", "1"], "sft computes on CPUs"),
        (["sft", "--data", "a.jsonl", "--gpus", "2"], "uses one GPU"),
        (["sft", "--data", "a.jsonl", "--questions", "q.jsonl"], "leave one of the two out"),
        (["sft", "--model", "m"], "--model needs --data"),
        (["sft", "--data", "/home/me/a.jsonl"], "jobs see nothing but /data"),
        (["sft", "--data", "a.jsonl", "--set", "output=/elsewhere"], "--set output: jobs take it from --run-id"),
        (["sft", "--data", "a.jsonl", "--set", "data=b.jsonl"], "--set data: jobs take it from --data"),
        (["index", "--gpus", "1"], "a bm25 index is built without one"),
        (["train", "--run-id", "Not_Good"], "at most 50 lower-case letters"),
        (["train", "--set", "output=/elsewhere"], "--run-id"),
        (["train", "--tag", "latest"], "'latest' changes"),
        (["train", "--model", "/home/me/model"], "jobs see nothing but /data"),
        (["train", "--model", "../../etc"], "jobs see nothing but /data"),
        (["train", "--toleration", ":NoSchedule"], "KEY[=VALUE][:EFFECT]"),
        (["index", "--run-id", "mine"], "--run-id mine needs --corpus"),
        (["evaluate", "--served", "--model", "x"], "leave --model"),
        (["tran"], "invalid choice"),
        (["train", "--gpu", "1"], "did you mean '--gpus'"),
    ],
)
def test_wrong_use_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    message = refusal(capsys, *arguments)
    assert sentence in message and len(message.splitlines()) == 1
