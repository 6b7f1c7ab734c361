"""The order in which settings of the command line, file and plan win, and how a training job gets its own."""

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from searchrl.errors import ConfigurationError
from searchrl.local.index_build import IndexRequest
from searchrl.local.local_services import Inputs, LocalServices
from searchrl.local.service_plan import EngineChoice, ServicePlan


def written(command: list[str]) -> dict[str, Any]:
    return yaml.safe_load(Path(command[command.index("--config") + 1]).read_text())


def test_set_takes_precedence_over_the_file_and_the_file_over_the_plan(tmp_path: Path) -> None:
    config = tmp_path / "up.yaml"
    config.write_text("retriever: {limits: {max_top_k: 5, max_queries: 6}, listen: {http_port: 8080}}")
    plan = ServicePlan.read(tmp_path, config, ["retriever.limits.max_top_k=7"])
    settings = written(plan.command("retriever", tmp_path / "r.json", {"index_dir": "i", "limits": {"max_top_k": 1}}))
    assert settings["limits"] == {"max_top_k": 7, "max_queries": 6}
    assert settings["listen"]["http_port"] == 8080
    assert settings["listen"]["grpc_port"] == 0
    assert settings["index_dir"] == "i"


def test_the_ready_file_is_the_supervisors(tmp_path: Path) -> None:
    plan = ServicePlan.read(tmp_path, None, ["retriever.ready_file=elsewhere"])
    assert written(plan.command("retriever", tmp_path / "r.json", {}))["ready_file"] == str(tmp_path / "r.json")


def test_a_settings_file_is_private_because_it_may_hold_keys(tmp_path: Path) -> None:
    command = ServicePlan(tmp_path).command("generator", tmp_path / "r.json", {"engine": {"key": "secret"}})
    path = Path(command[-1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_service_named_without_settings_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be a mapping"):
        ServicePlan.read(tmp_path, None, ["retriever=1"])


def test_a_training_job_gets_a_run_file_and_its_process_settings_apart(tmp_path: Path) -> None:
    plan = ServicePlan.read(tmp_path, None, ["trainer.preset=small_world", "trainer.steps=3"])
    command = plan.trainer_command(tmp_path / "t.json", {"output": str(tmp_path / "run"), "steps": 60})
    assert plan.is_requested("trainer") and not plan.is_requested("retriever")
    assert written(command) == {"output": str(tmp_path / "run"), "steps": 3, "preset": "small_world"}
    assert f"ready_file={tmp_path / 't.json'}" in command
    assert "--resume" not in command


def test_a_training_job_that_has_started_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    command = ServicePlan(tmp_path).trainer_command(tmp_path / "t.json", {"output": str(tmp_path / "run")})
    assert command[command.index("--resume") + 1] == str(tmp_path / "run")


def test_engines_become_the_generators_settings() -> None:
    assert EngineChoice().settings() == {"kind": "reader"}
    known = {"kind": "url", "base_url": "http://u", "model": "m"}
    assert EngineChoice("url", "http://u", "m").settings() == known
    assert EngineChoice("url", "http://u", "m", "k").settings() == {**known, "key": "k"}
    assert EngineChoice("vllm", model="m").settings() == {"kind": "vllm", "vllm": {"model": "m"}}
    with pytest.raises(ConfigurationError, match="--engine-model"):
        EngineChoice("vllm").settings()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [("[]", "non-empty list"), ("- {name: r, key: k, scope: read}", "scope 'admin'"), ("{", "not valid YAML")],
)
def test_keys_that_the_services_cannot_use_among_each_other_are_reported(
    tmp_path: Path, keys: str, sentence: str
) -> None:
    (tmp_path / "keys.yaml").write_text(keys)
    with pytest.raises(ConfigurationError, match=sentence):
        LocalServices(tmp_path / "up", Inputs(keys_file=tmp_path / "keys.yaml"), ServicePlan(tmp_path))


def test_inputs_are_named_in_the_record(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    assert Inputs(index=IndexRequest(corpus)).to_record() == {"corpus": str(corpus), "engine": "reader"}
