"""Which engine do the settings ask for? Builds it, unstarted."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from searchrl.clients.retry_policy import RetryPolicy
from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from services.generator.engines.chat_engine import ChatEngine, ChatMessage
from services.generator.engines.reader_engine import ReaderEngine
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.engines.vllm_command import VllmCommand, free_port, require_chat_template
from services.generator.engines.vllm_process import Listener, VllmServer
from services.generator.lifecycle import Step
from services.generator.metrics import EngineMetrics, GeneratorMetrics
from services.generator.settings import Engine
from services.generator.settings import VllmServer as VllmServerSettings

if TYPE_CHECKING:
    from services.generator.engines.openai_engine import OpenAIEngine


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, the server behind it where there is one, and what start and stop run."""

    engine: ChatEngine
    upstream: UpstreamApi | None = None
    starters: list[Step] = field(default_factory=list)
    closers: list[Step] = field(default_factory=list)


def build_engine(settings: Engine, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    """Build the engine called ``name`` (generator or judge) in the metrics.

    Raises:
        ConfigurationError: a setting that its kind needs is missing, or names something that is not there.
    """
    if settings.kind == "reader":
        return BuiltEngine(ReaderEngine())
    if settings.kind == "url":
        return _at_url(settings, metrics.engine(name))
    return _vllm(settings, metrics.engine(name), metrics, health)


def _openai_engine(
    settings: Engine, base_url: str, model: str, metrics: EngineMetrics, structured_outputs: bool
) -> "OpenAIEngine":
    from services.generator.engines.openai_engine import OpenAIEngine  # half a second that the reader does not need

    return OpenAIEngine(
        base_url,
        model,
        metrics,
        key=secret(settings.key),
        structured_outputs=structured_outputs,
        timeout_seconds=settings.timeout_seconds,
        retries=RetryPolicy(attempts=settings.attempts),
        use_proxies=settings.kind == "url",
    )


def _at_url(settings: Engine, metrics: EngineMetrics) -> BuiltEngine:
    if not settings.base_url or not settings.model:
        raise ConfigurationError("engine.kind 'url' needs engine.base_url and engine.model")
    engine = _openai_engine(settings, settings.base_url, settings.model, metrics, settings.structured_outputs)
    upstream = UpstreamApi(
        settings.base_url, metrics, key=secret(settings.key), timeout_seconds=settings.timeout_seconds
    )
    return BuiltEngine(engine, upstream, closers=[engine.close, upstream.close])


def _vllm(settings: Engine, metrics: EngineMetrics, owner: GeneratorMetrics, health: Health) -> BuiltEngine:
    command = _vllm_command(settings.vllm)
    owner.engine_supervised.set(1)
    engine = _openai_engine(settings, command.base_url, command.served_name, metrics, structured_outputs=True)
    upstream = UpstreamApi(command.base_url, metrics, timeout_seconds=settings.timeout_seconds, use_proxies=False)

    def lost(reason: str) -> None:
        owner.engine_up.set(0)
        owner.engine_restarts.inc()
        health.set_not_ready(reason)

    def ready() -> None:
        owner.engine_up.set(1)
        health.set_ready()

    async def start() -> None:
        await server.start()
        owner.engine_up.set(1)

    server = VllmServer(
        command,
        probe=lambda: engine.chat((ChatMessage("user", "Hello"),), max_tokens=1),
        listener=Listener(lost, ready),
        log_file=settings.vllm.log_file,
        start_seconds=settings.vllm.start_seconds,
    )
    return BuiltEngine(engine, upstream, starters=[start], closers=[server.stop, engine.close, upstream.close])


def _vllm_command(settings: VllmServerSettings) -> VllmCommand:
    if not settings.model:
        raise ConfigurationError("engine.kind 'vllm' needs engine.vllm.model, a model folder or a name on a hub")
    require_chat_template(settings.model, settings.chat_template)
    command = VllmCommand(
        executable=settings.executable,
        model=settings.model,
        served_name=settings.served_name or Path(settings.model).name,
        port=free_port(),
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        tensor_parallel_size=settings.tensor_parallel_size,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
        enforce_eager=settings.enforce_eager,
        chat_template=settings.chat_template,
        shutdown_seconds=settings.shutdown_seconds,
        extra_flags=tuple(settings.extra_flags),
    )
    command.arguments()
    return command


def secret(value: SecretStr | None) -> str | None:
    """The text of a secret setting."""
    return None if value is None else value.get_secret_value()
