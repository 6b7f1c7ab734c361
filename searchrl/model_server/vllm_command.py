"""Builds the command line and the environment of a vLLM server, and checks its model."""

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.model_server.settings import VllmSettings
from searchrl.tokenization.chat_template import find_chat_template
from searchrl.tokenization.model_files import read_json

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
    """The command line of a server that listens on ``port``, of the loopback interface unless another host is given.

    The routes of vLLM's development mode can replace weights, so it is off unless ``extra_environment`` enables it.
    """

    settings: VllmSettings
    port: int
    extra_arguments: tuple[str, ...] = ()
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    host: str = HOST

    @property
    def served_name(self) -> str:
        """The model's name in the API."""
        return self.settings.served_name or Path(self.settings.model).name

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def arguments(self) -> list[str]:
        """Return the command line.

        Raises:
            ConfigurationError: the executable does not exist.
        """
        settings = self.settings
        # Resolved here, because ``parent_death_signal`` uses execv, which does not search PATH.
        found = shutil.which(str(settings.executable))
        if found is None:
            raise ConfigurationError(
                f"engine.vllm.executable: no command {settings.executable}; run `make install-vllm` or name another"
            )
        flags = {
            "--served-model-name": self.served_name,
            "--host": self.host,
            "--port": str(self.port),
            "--dtype": settings.dtype,
            "--max-num-seqs": str(settings.max_num_seqs),
            "--shutdown-timeout": str(settings.shutdown_seconds),
            # Ignore the model's sampling defaults (generation_config.json): the request alone decides.
            "--generation-config": "vllm",
        }
        if settings.max_model_len is not None:
            flags["--max-model-len"] = str(settings.max_model_len)
        if settings.tensor_parallel_size > 1:
            flags["--tensor-parallel-size"] = str(settings.tensor_parallel_size)
        # The CPU backend has no GPU memory to divide; it takes its cache's size from VLLM_CPU_KVCACHE_SPACE.
        if not settings.cpu_kv_cache_gib:
            flags["--gpu-memory-utilization"] = f"{settings.gpu_memory_utilization:g}"
        if settings.chat_template is not None:
            flags["--chat-template"] = str(settings.chat_template)
        eager = ["--enforce-eager"] if settings.enforce_eager else []
        return [
            found,
            "serve",
            settings.model,
            *(part for flag in flags.items() for part in flag),
            *eager,
            *self.extra_arguments,
            *settings.extra_flags,
        ]

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the environment of the process."""
        settings = self.settings
        variables = {name: value for name, value in inherited.items() if not name.startswith(_NOT_INHERITED)}
        # vLLM would otherwise send usage statistics over the network.
        variables["VLLM_NO_USAGE_STATS"] = "1"
        # A local model needs nothing from the hub, and its start must not depend on one.
        if Path(settings.model).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        if settings.cpu_kv_cache_gib:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
            if settings.enforce_eager:  # vLLM compiles its logprob code even then, and exits if there is no compiler
                variables.setdefault("TORCHDYNAMO_DISABLE", "1")
        return variables | dict(self.extra_environment)


def require_chat_template(model: str, chat_template: Path | None) -> None:
    """Refuse a model folder without a chat template; a model on a hub shows this only at its first generation.

    Raises:
        ConfigurationError: neither folder nor settings have a template, the named file does not exist, or the
            tokenizer's configuration is not a JSON object.
    """
    if chat_template is not None:
        if not chat_template.is_file():
            raise ConfigurationError(f"engine.vllm.chat_template: there is no file {chat_template}")
        return
    folder = Path(model)
    # Transformers keeps a template in tokenizer_config.json, chat_template.jinja or, for processors,
    # chat_template.json.
    if not folder.is_dir() or (folder / "chat_template.json").is_file():
        return
    if find_chat_template(folder, read_json(folder / "tokenizer_config.json")) is None:
        raise ConfigurationError(
            f"engine.vllm.model: {folder} has no chat template; choose an instruction-tuned model or set "
            "engine.vllm.chat_template"
        )


def find_free_port(host: str = HOST) -> int:
    """Return a port of an interface that is free now; vLLM fails to start if it is taken before it binds."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
