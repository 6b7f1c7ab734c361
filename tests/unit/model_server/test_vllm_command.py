"""The command line of a vLLM server on CPUs and GPUs, and the checks of its model."""

import json
from pathlib import Path
from typing import Any

import pytest

from searchrl.errors import ConfigurationError
from searchrl.model_server.settings import VllmSettings
from searchrl.model_server.vllm_command import VllmCommand, require_chat_template

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def command_of(model: str, **settings: Any) -> VllmCommand:
    return VllmCommand(VllmSettings(**{"executable": Path("sh"), "model": model, **settings}), 5000)


def test_a_cpu_server_gets_no_gpu_flags(tmp_path: Path) -> None:
    command = command_of("org/model", cpu_kv_cache_gib=2, enforce_eager=True)
    arguments = command.arguments()
    assert "--gpu-memory-utilization" not in arguments
    assert arguments[-1] == "--enforce-eager"
    assert command.environment({})["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_an_eager_server_on_cpus_compiles_nothing_unless_the_environment_says_so() -> None:
    eager, compiling = (command_of("m", cpu_kv_cache_gib=1, enforce_eager=on) for on in (True, False))
    assert eager.environment({})["TORCHDYNAMO_DISABLE"] == "1"
    assert eager.environment({"TORCHDYNAMO_DISABLE": "0"})["TORCHDYNAMO_DISABLE"] == "0"
    assert "TORCHDYNAMO_DISABLE" not in compiling.environment({})


def test_a_gpu_server_gets_its_flags_and_the_extra_ones_last() -> None:
    command = command_of("org/model", tensor_parallel_size=4, max_model_len=8192, extra_flags=["--quiet"])
    arguments = command.arguments()
    assert arguments[1:3] == ["serve", "org/model"]
    for flag, value in {
        "--tensor-parallel-size": "4",
        "--gpu-memory-utilization": "0.9",
        "--max-model-len": "8192",
        "--host": "127.0.0.1",
        "--port": "5000",
        "--served-model-name": "model",
        "--shutdown-timeout": "5",
    }.items():
        assert arguments[arguments.index(flag) + 1] == value
    assert arguments[-1] == "--quiet"
    assert "VLLM_CPU_KVCACHE_SPACE" not in command.environment({})


def test_routes_that_change_the_model_are_enabled_by_the_caller_alone() -> None:
    inherited = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": "/ours"}
    settings = VllmSettings(executable=Path("sh"), model="m")
    trained = VllmCommand(settings, 5000, ("--flag",), {"VLLM_SERVER_DEV_MODE": "1"})
    assert "--flag" in trained.arguments()
    assert trained.environment(inherited)["VLLM_SERVER_DEV_MODE"] == "1"
    assert not {"VLLM_SERVER_DEV_MODE", "PYTHONPATH"} & VllmCommand(settings, 5000).environment(inherited).keys()


def test_only_a_model_folder_is_used_offline(tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE" not in command_of("org/model").environment({})
    assert command_of(str(tmp_path)).environment({})["HF_HUB_OFFLINE"] == "1"


def test_a_missing_command_says_how_to_get_it() -> None:
    with pytest.raises(ConfigurationError, match="make install-vllm"):
        command_of("m", executable=Path("/nowhere/vllm")).arguments()


def test_a_model_folder_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="has no chat template"):
        require_chat_template(str(tmp_path), None)


def test_a_template_in_any_of_the_usual_places_is_found(tmp_path: Path) -> None:
    for name, content in {
        "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}),
        "chat_template.jinja": TEMPLATE,
        "chat_template.json": json.dumps({"chat_template": TEMPLATE}),
    }.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(content)
        require_chat_template(str(folder), None)
    require_chat_template("org/model-on-a-hub", None)


def test_a_named_template_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        require_chat_template("org/model", tmp_path / "missing.jinja")
