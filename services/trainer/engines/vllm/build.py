"""Builds vLLM as the engine of a run: its servers, how weights reach them, and where they run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from searchrl.clients.service_client import read_key
from searchrl.model_server.settings import VllmSettings
from searchrl.model_server.vllm_command import VllmCommand, find_free_port
from searchrl.model_server.vllm_server import StartedServer, VllmServer
from searchrl.tokenization.model_files import read_json
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.cluster.placement import RunPlacement
from services.trainer.engines.base import EngineContext
from services.trainer.engines.vllm.adapters import AdapterReplica, AdapterTransfer
from services.trainer.engines.vllm.client import VllmClient
from services.trainer.engines.vllm.collective_transfer import CollectiveTransfer
from services.trainer.engines.vllm.engine import VllmEngine
from services.trainer.engines.vllm.ipc_transfer import IpcTransfer
from services.trainer.engines.vllm.replica import Replica
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.engines.vllm.weight_transfer import SharedFsTransfer, WeightTransfer

SERVED_NAME = "policy"  # of the model, in servers that the trainer starts
SERVER_ARGUMENTS = (
    # As the learner computes them: after temperature.
    *("--logprobs-mode", "processed_logprobs"),
    # One process for all requests: with several, each knows only its own turns to abort and its own adapters.
    *("--api-server-count", "1"),
)
"""The flags of every server that samples rollouts."""


def build_vllm_engine(settings: VllmEngineSettings, context: EngineContext) -> VllmEngine:
    """Build the engine of a run; no process is started yet.

    Raises:
        ConfigurationError: there is no vLLM to start, or the key file cannot be read.
    """
    tokenizer = ModelTokenizer.of_searcher(context.model)
    if context.placement is None:
        context = replace(context, placement=RunPlacement(servers=settings.places()))
    transfer = _transfer(settings, context)
    commands = [] if settings.urls else [_command(settings, context, transfer, n) for n in range(settings.replicas)]
    replicas: list[Replica] = []
    key = read_key(settings.key_file)
    replica_class: Any = AdapterReplica if isinstance(transfer, AdapterTransfer) else Replica
    for url in settings.urls or [command.base_url for command in commands]:
        client = VllmClient(url, key=key, eos_ids=tokenizer.eos_ids, timeout_seconds=settings.timeout_seconds)
        replicas.append(
            replica_class(
                client,
                transfer,
                max_in_flight=settings.max_in_flight,
                update_seconds=settings.update_seconds,
                largest_difference=settings.largest_difference,
                interrupts_turns=settings.running_turns == "continue",
                on_change=lambda: engine.note_change(),
                on_failed_push=context.on_failed_push,
            )
        )
    for number, (replica, command) in enumerate(zip(replicas, commands, strict=False)):
        replica.server = _server(settings, context, command, replica, number)
    engine = VllmEngine(replicas, transfer, settings, context, tokenizer)
    return engine


def _server(
    settings: VllmEngineSettings, context: EngineContext, command: VllmCommand, replica: Replica, number: int
) -> StartedServer:
    if settings.placement == "process":
        return VllmServer(command, probe=replica.client.generate_once, listener=replica.listener())
    from services.trainer.engines.vllm.ray_server import RayServer  # Ray takes seconds to import

    assert context.placement is not None
    return RayServer(context.placement, number, command, replica.client, replica.listener())


def _transfer(settings: VllmEngineSettings, context: EngineContext) -> WeightTransfer:
    chosen = settings.weight_transfer
    if chosen.backend == "lora_adapter":
        return AdapterTransfer(chosen.folder or context.folder, context.adapter_rank)
    if chosen.backend == "shared_fs":
        return SharedFsTransfer(chosen.folder or context.folder, settings.server.dtype)
    if chosen.backend == "ipc":
        return IpcTransfer(settings.server.dtype, chosen.device)
    return CollectiveTransfer(
        chosen.backend, chosen.host, settings.server.dtype, settings.update_seconds, chosen.device
    )


def _command(
    settings: VllmEngineSettings, context: EngineContext, transfer: WeightTransfer, number: int
) -> VllmCommand:
    server = VllmSettings(
        **settings.server.model_dump(exclude={"max_model_len", "tensor_parallel_size"}),
        max_model_len=settings.server.max_model_len or context.context_tokens,
        tensor_parallel_size=settings.tensor_parallel_size,
        model=str(context.model),
        served_name=SERVED_NAME,
        log_file=context.folder / f"vllm-{number}.log",
    )
    environment = {**transfer.environment, **(settings.environments[number] if settings.environments else {})}
    arguments = (*SERVER_ARGUMENTS, *transfer.arguments, *_architecture(context.model))
    if settings.placement == "ray":
        return _on_any_node(VllmCommand(server, 0, arguments, environment), number)
    command = VllmCommand(server, find_free_port(), arguments, environment)
    command.arguments()  # raises now, at start, if there is no such executable
    return command


def _on_any_node(command: VllmCommand, number: int) -> VllmCommand:
    """Name files as the nodes see them, whose working folder is another one; the actor knows host and port."""
    settings = command.settings
    changed: dict[str, Any] = {"model": str(Path(settings.model).absolute()), "log_file": settings.log_file.absolute()}
    if len(settings.executable.parts) > 1:  # else it is on the PATH
        changed["executable"] = settings.executable.absolute()
    return replace(command, settings=settings.model_copy(update=changed), host=f"vllm-{number}")


def _architecture(model: Path) -> tuple[str, ...]:
    """Return the flags for a ``config.json`` that names no architecture: vLLM would take it for an encoder."""
    config = read_json(model / "config.json")
    if config.get("architectures"):
        return ()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # takes seconds to import

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type"))
    return () if name is None else ("--hf-overrides", json.dumps({"architectures": [name]}))
