"""The checks of ``--dry-run``: each is made to fail once, at the command line, and all failures are reported."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from searchrl.domain.question import Question
from searchrl.errors import Unauthenticated, Unavailable
from searchrl.platform.capacity import Memory
from searchrl.platform.settings import Listen
from searchrl.small_world.files import WARM_START_FOLDER
from services.trainer import wiring
from services.trainer.command_line import main
from services.trainer.preflight.run_checks import check_run
from services.trainer.runs.service_pins import Services
from tests.fakes.small_run import WORLD, run_config, write_questions
from tests.fakes.small_world_services import SmallWorldGenerator, SmallWorldSearcher

Findings = dict[str, dict[str, Any]]
DryRun = Callable[..., Findings]
GIB = 2**30


class Ended(Exception):
    """Raised instead of ending this process."""


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    """The services of the run, as objects in this process."""

    async def index_generation(_question: Question) -> str:
        return "g7"

    connected = Services(SmallWorldSearcher(WORLD.passages), SmallWorldGenerator(), index_generation)
    monkeypatch.setattr(wiring, "connect", lambda _config: connected)
    return connected


@pytest.fixture
def dry_run(services, tmp_path: Path, capsys, monkeypatch) -> DryRun:
    """Run the trainer's program with changed settings; returns its findings after checking the exit code."""
    questions = write_questions(tmp_path / "questions.jsonl")

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("os._exit", end)

    def run(*flags: str, code: int = 2, **changes: object) -> Findings:
        values = {
            "preset": "small_world", "model": WARM_START_FOLDER, "questions": questions, "output": tmp_path / "run",
            "services.generator": "g:1", "listen.http_port": 0, "listen.grpc_port": 0, "log_format": "text",
            **{name.replace("__", "."): value for name, value in changes.items()},
        }  # fmt: skip
        settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        with pytest.raises((SystemExit, Ended)) as ended:
            main([*settings, "--dry-run", "--json", *flags])
        assert ended.value.args == (code,)
        return {row["subject"]: row for row in json.loads(capsys.readouterr().out)}

    return run


def failed(findings: Findings) -> set[str]:
    return {subject for subject, row in findings.items() if row["state"] == "failed"}


def test_a_run_that_can_start_passes_every_check_and_writes_nothing(dry_run: DryRun, tmp_path: Path) -> None:
    findings = dry_run(code=0)
    assert {row["state"] for row in findings.values()} == {"ok"}
    assert list(findings) == [
        "model", "questions", "run folder", "trackers", "device", "memory", "disk", "batches", "time", "ports",
        "retriever", "generator", "judge",
    ]  # fmt: skip
    assert "index generation g7" in findings["retriever"]["found"]
    # 70 steps of 24 questions, of which there are 8
    assert findings["batches"]["found"].startswith("13,440 rollouts and 140 optimizer steps in 70 training steps")
    assert findings["batches"]["found"].endswith("each question is asked 210.0 times")
    assert findings["time"]["found"].startswith("at most about ")
    assert "every rollout would have 512 tokens" in findings["time"]["found"]
    assert not (tmp_path / "run").exists()


def test_without_json_the_plan_is_printed_first_and_then_a_line_per_check(services, tmp_path: Path, capsys) -> None:
    settings = {"preset": "small_world", "model": "nowhere", "output": tmp_path / "run", "questions": "nowhere.jsonl"}
    settings |= {"services.generator": "g:1", "steps": 4, "log_format": "text"}
    with pytest.raises(SystemExit) as ended:
        main([part for name, value in settings.items() for part in ("--set", f"{name}={value}")] + ["--dry-run"])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out.startswith("run run: 4 steps from")
    assert "\nfailed   model         there is no model folder nowhere; see 'What a model folder needs'" in printed.out
    # the one sentence also names every failure
    assert "model: there is no model folder nowhere; questions: there is no question file nowhere" in printed.err


async def test_the_table_of_a_run_says_where_each_figure_comes_from(services, tmp_path: Path) -> None:
    config = run_config(tmp_path, learner={"ranks": 2, "gradient_checkpointing": True}, steps=5)
    _, table = await check_run(config, Listen(http_port=0, grpc_port=0))
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in table.splitlines() if line.startswith("  ")}
    # 2 questions x 4 rollouts and 2 mini-batches a step
    assert rows["rollouts"].split() == ["8", "2", "questions", "x", "4,", "in", "each", "step"]
    assert rows["mini-batch"].split()[0] == "4"
    assert rows["optimizer"].endswith("steps: 5 x 2 mini-batches x 1 epochs")
    assert rows["samples"].startswith("40") and rows["samples"].endswith("each of 8 questions 1.2 times")
    # 0.66 million parameters: 4 and 8 bytes each on two ranks
    assert rows["weights"].split()[:2] == rows["gradients"].split()[:2] == ["1", "MiB"]
    assert rows["moments"].split()[:2] == ["3", "MiB"] and rows["moments"].endswith("a share of 1/2")
    assert "one recomputed layer" in rows["backward"] and "reference" not in rows
    assert rows["KV"].startswith("cache") and rows["KV"].endswith("16 rollouts at once (engine.slots)")
    assert rows["context"].split()[0] == "512" and "memory of each of 2 learner ranks on cpu\n" in table


def test_questions_that_cannot_be_read_are_reported(dry_run: DryRun, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"\x00\x01\x02")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "garbage"):
        assert failed(dry_run(questions=path)) == {"questions"}


def test_weights_that_are_missing_or_cut_are_reported(dry_run: DryRun, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(WARM_START_FOLDER, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    findings = dry_run(model=model)
    assert failed(findings) == {"model"} and "model.safetensors is damaged" in findings["model"]["found"]
    weights.unlink()
    assert "there are no weights" in dry_run(model=model)["model"]["found"]


def test_weights_of_fewer_layers_than_the_configuration_describes_are_reported(dry_run: DryRun, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(WARM_START_FOLDER, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"num_hidden_layers": config["num_hidden_layers"] + 1, "layer_types": None}
    (model / "config.json").write_text(json.dumps(config))
    found = dry_run(model=model)["model"]["found"]
    assert "parameters that its config.json describes: tensors are missing" in found
    (model / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    assert "config.json: The checkpoint" in dry_run(model=model)["model"]["found"]


def test_a_baseline_file_that_is_missing_is_reported(dry_run: DryRun, tmp_path: Path) -> None:
    findings = dry_run(reward__kind="gain_beyond_rag", reward__baseline_file=tmp_path / "nowhere.json")
    assert failed(findings) == {"baseline", "pins"}
    assert "build_baseline" in findings["baseline"]["advice"]


def test_a_key_that_cannot_be_read_or_that_the_services_do_not_know_is_reported(
    dry_run: DryRun, services, tmp_path: Path
) -> None:
    assert failed(dry_run(services__key_file=tmp_path / "nowhere")) == {"key file"}
    services.searcher.down = services.generator.down = Unauthenticated("this API key is not valid here")
    findings = dry_run()
    assert failed(findings) == {"retriever", "generator", "judge"}
    assert {findings[name]["advice"] for name in failed(findings)} == {"set services.key_file"}


def test_a_service_that_is_unavailable_is_reported(dry_run: DryRun, services, monkeypatch) -> None:
    async def judge(*_arguments: object) -> None:
        raise Unavailable("the judge's LLM is gone")

    monkeypatch.setattr(services.generator, "judge", judge)
    findings = dry_run()
    assert failed(findings) == {"judge"} and "the judge's LLM is gone" in findings["judge"]["found"]
    services.searcher.down = Unavailable("no index")
    assert failed(dry_run()) == {"retriever", "judge"}


def test_a_device_that_does_not_exist_is_reported(dry_run: DryRun) -> None:
    findings = dry_run(learner__device="cuda:77")
    assert failed(findings) == {"device"} and "cuda:77" in findings["device"]["found"]


def test_a_gpu_that_cannot_hold_the_learner_is_reported(dry_run: DryRun, monkeypatch) -> None:
    """Only the learner is on the GPU: the engine and its KV pool stay in main memory."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _device: "Tiny GPU")
    free, total = 2**20, GIB
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (free, total))

    def measure_speed(*_: object) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("services.trainer.preflight.run_checks.measure_speed", measure_speed)
    findings = dry_run(code=0, learner__device="cuda")
    assert findings["device"]["found"] == "cuda: Tiny GPU"
    assert findings["time"]["found"] == "not estimated: CUDA error"
    assert findings["GPU memory"]["state"] == "warning"
    assert "KV pool" in findings["memory"]["found"] and "learner" not in findings["memory"]["found"]
    total = free
    findings = dry_run(learner__device="cuda")
    assert failed(findings) == {"GPU memory"}
    assert "learner.gradient_checkpointing" in findings["GPU memory"]["advice"]
    assert "GPU memory" not in dry_run(learner__device="cuda:1")


def test_memory_that_cannot_hold_the_run_names_the_slots_that_would_fit(dry_run: DryRun, monkeypatch) -> None:
    # 256 slots take 2 MiB each, the old data of the pool's last growth included: 1 MiB is 4 layers x keys and values
    # x 2 heads x 512 tokens x 32 numbers x 4 bytes
    memory = "services.trainer.preflight.run_checks.main_memory"
    monkeypatch.setattr(memory, lambda: Memory(total=GIB // 4, available=GIB // 4))
    findings = dry_run()
    assert failed(findings) == {"memory"} and findings["memory"]["found"].startswith("NOT ENOUGH")
    slots = int(findings["memory"]["advice"].split()[3])
    assert 0 < slots < 256
    assert dry_run(code=0, engine__slots=slots)["memory"]["state"] == "ok"
    assert failed(dry_run(engine__slots=slots + 2)) == {"memory"}
    monkeypatch.setattr(memory, lambda: Memory(total=GIB, available=GIB // 4))
    assert dry_run(code=0)["memory"]["state"] == "warning"


def test_a_disk_that_cannot_hold_the_checkpoints_is_reported(dry_run: DryRun, tmp_path: Path, monkeypatch) -> None:
    usage = psutil.disk_usage(str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=10 * 2**20))
    findings = dry_run()
    assert failed(findings) == {"disk"} and "checkpoints.keep" in findings["disk"]["advice"]
    # 0.66 million parameters: two checkpoints of 7.6 MiB at a time are 15 MiB, and the final model has 2.5 MiB
    assert failed(dry_run(checkpoints__keep=1)) == {"disk"}
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=20 * 2**20))
    assert dry_run(code=0, checkpoints__keep=1)["disk"]["state"] == "ok"


def test_a_run_folder_that_cannot_be_written_or_holds_another_run_is_reported(dry_run: DryRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert failed(dry_run(output=tmp_path / "file" / "run")) == {"disk"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert "is continued" in dry_run(code=0)["run folder"]["found"]
    assert failed(dry_run("--new")) == {"run folder"}


def test_a_tracker_without_address_or_key_is_reported(dry_run: DryRun, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    findings = dry_run(logging__trackers="[tensorboard, mlflow]")
    assert failed(findings) == {"trackers"} and "logging.mlflow.address" in findings["trackers"]["found"]
    reachable = {"logging__trackers": "mlflow", "logging__mlflow__address": "http://127.0.0.1:9"}  # it is not called
    missing = dry_run(**reachable, logging__mlflow__key_file=tmp_path / "none")
    assert failed(missing) == {"trackers"} and "key_file: cannot read" in missing["trackers"]["found"]
    found = dry_run(code=0, **reachable, logging__wandb__mode="offline")
    assert found["trackers"]["found"] == "metrics.jsonl, mlflow; logging.wandb has no effect"


def test_a_port_that_is_taken_is_reported(dry_run: DryRun) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        findings = dry_run(listen__http_port=port, listen__grpc_port=port)
    assert failed(findings) == {"ports"} and "Address already in use" in findings["ports"]["found"]
    assert findings["ports"]["advice"].startswith("set listen.http_port and listen.grpc_port")


def test_validation_questions_are_checked_with_the_others(dry_run: DryRun, tmp_path: Path) -> None:
    held_out = write_questions(tmp_path / "held-out.jsonl", tuple(WORLD.questions(12, "train"))[8:])
    findings = dry_run(code=0, validation__questions=held_out)
    assert findings["validation"]["found"] == f"4 in {held_out}"
    shared = write_questions(tmp_path / "shared.jsonl", tuple(WORLD.questions(8, "train"))[:2])
    assert failed(dry_run(validation__questions=shared)) == {"validation"}
    warned = dry_run(code=0, validation__questions=shared, validation__overlap="warn")
    assert warned["validation"]["found"].endswith("2 of them are trained on")
