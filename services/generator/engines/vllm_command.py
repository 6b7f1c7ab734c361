"""Builds the command and the environment of a vLLM server, and checks that its model has a chat template."""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.tokenization.chat_template import find_chat_template

HOST = "127.0.0.1"
# Not passed to vLLM: our settings, which contain keys; variables that would make its Python load our packages; and
# variables that enable routes by which a client can change the model.
_NOT_INHERITED = (
    "GENERATOR_",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
)


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """The options of the server; ``port`` is on the loopback interface only.

    The routes of vLLM's development mode can replace weights, so it stays off: this model is frozen.
    """

    executable: Path
    model: str
    served_name: str
    port: int
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    cpu_kv_cache_gib: int = 0
    enforce_eager: bool = False
    chat_template: Path | None = None
    shutdown_seconds: int = 20
    extra_flags: tuple[str, ...] = ()

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def arguments(self) -> list[str]:
        """Return the command line.

        Raises:
            ConfigurationError: the executable does not exist.
        """
        found = shutil.which(str(self.executable))
        if found is None:
            raise ConfigurationError(
                f"engine.vllm.executable: no command {self.executable}; run `make install-vllm` or name another"
            )
        flags = {
            "--served-model-name": self.served_name,
            "--host": HOST,
            "--port": str(self.port),
            "--dtype": self.dtype,
            "--max-num-seqs": str(self.max_num_seqs),
            "--shutdown-timeout": str(self.shutdown_seconds),
            # Ignore the model's sampling defaults (generation_config.json): the request alone decides.
            "--generation-config": "vllm",
        }
        if self.max_model_len is not None:
            flags["--max-model-len"] = str(self.max_model_len)
        if self.tensor_parallel_size > 1:
            flags["--tensor-parallel-size"] = str(self.tensor_parallel_size)
        if not self.cpu_kv_cache_gib:
            flags["--gpu-memory-utilization"] = f"{self.gpu_memory_utilization:g}"
        if self.chat_template is not None:
            flags["--chat-template"] = str(self.chat_template)
        eager = ["--enforce-eager"] if self.enforce_eager else []
        return [
            found,
            "serve",
            self.model,
            *(part for flag in flags.items() for part in flag),
            *eager,
            *self.extra_flags,
        ]

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the environment of the process."""
        variables = {name: value for name, value in inherited.items() if not name.startswith(_NOT_INHERITED)}
        variables["VLLM_NO_USAGE_STATS"] = "1"
        if Path(self.model).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        if self.cpu_kv_cache_gib:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(self.cpu_kv_cache_gib)
            if self.enforce_eager:  # vLLM compiles its logprob code even then, and exits if there is no compiler
                variables.setdefault("TORCHDYNAMO_DISABLE", "1")
        return variables


def require_chat_template(model: str, chat_template: Path | None) -> None:
    """Refuse a model folder without a chat template; a model on a hub shows this only at its first generation.

    Raises:
        ConfigurationError: neither folder nor settings have a template, or the named file does not exist.
    """
    if chat_template is not None:
        if not chat_template.is_file():
            raise ConfigurationError(f"engine.vllm.chat_template: there is no file {chat_template}")
        return
    folder = Path(model)
    if not folder.is_dir() or (folder / "chat_template.json").is_file():
        return
    file = folder / "tokenizer_config.json"
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from error
    if find_chat_template(folder, config) is None:
        raise ConfigurationError(
            f"engine.vllm.model: {folder} has no chat template; choose an instruction-tuned model or set "
            "engine.vllm.chat_template"
        )


def free_port() -> int:
    """Return a port of the loopback interface that is free now; vLLM fails to start if it is taken before it binds."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
