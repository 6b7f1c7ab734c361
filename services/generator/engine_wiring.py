"""Builds the engine that the settings name, without starting it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import SecretStr

from searchrl.clients.retry_policy import RetryPolicy
from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from services.generator.engines.chat_engine import ChatEngine
from services.generator.engines.engine_watch import EngineWatch
from services.generator.engines.openai_engine import OpenAIEngine
from services.generator.engines.reader_engine import ReaderEngine
from services.generator.engines.request_form import RequestForm, RequestSettings
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.engines.vllm_command import VllmCommand, free_port, require_chat_template
from services.generator.engines.vllm_process import Listener, VllmServer
from services.generator.lifecycle import Step
from services.generator.metrics import EngineMetrics, GeneratorMetrics
from services.generator.settings import Engine
from services.generator.settings import VllmServer as VllmServerSettings


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, the model server behind it if there is one, and what start and stop run."""

    engine: ChatEngine
    upstream: UpstreamApi | None = None
    starters: list[Step] = field(default_factory=list)
    closers: list[Step] = field(default_factory=list)


def build_engine(settings: Engine, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    """Build the engine called ``name`` (generator or judge) in the metrics and in the reasons of readiness.

    Raises:
        ConfigurationError: a setting that its kind needs is missing, or names something that does not exist.
    """
    metrics.engine_supervised.labels(name).set(settings.kind == "vllm")
    metrics.engine_restarts.labels(name)  # exported as 0 from the start, so that the first restart is an increase
    if settings.kind == "reader":
        return BuiltEngine(ReaderEngine())
    if settings.kind == "url":
        return _at_url(settings, name, metrics, health)
    return _vllm(settings, name, metrics, health)


@dataclass(frozen=True, slots=True)
class _Server:
    """The address of a model server, and the model's name there."""

    base_url: str
    model: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class _Served:
    """The two clients of a model server, and the watch over it."""

    engine: OpenAIEngine
    upstream: UpstreamApi
    watch: EngineWatch

    def closers(self) -> list[Step]:
        return [self.watch.stop, self.engine.close, self.upstream.close]


def _served(settings: Engine, server: _Server, name: str, metrics: EngineMetrics, health: Health) -> _Served:
    from services.generator.engines.openai_engine import (
        OpenAIEngine,
    )  # aiohttp takes time that the reader does not need
    from services.generator.engines.upstream_api import UpstreamApi

    # a lambda, because the engine below gets the watch's ``record``, and the watch calls the engine
    watch = EngineWatch(name, lambda: engine.probe(), health)
    outcome = watch.record if settings.probe else None
    headers = {} if server.is_ours else {name: value.get_secret_value() for name, value in settings.headers.items()}
    key = None if server.is_ours else secret(settings.key)
    engine = OpenAIEngine(
        server.base_url,
        server.model,
        metrics,
        key=key,
        headers=headers,
        request=request_settings(settings),
        thoughts=settings.thoughts,
        timeout_seconds=settings.timeout_seconds,
        retries=RetryPolicy(attempts=settings.attempts),
        use_proxies=not server.is_ours,
        outcome=outcome,
    )
    upstream = UpstreamApi(
        server.base_url,
        metrics,
        key=key,
        headers=headers,
        timeout_seconds=settings.timeout_seconds,
        stream_seconds=settings.stream_seconds,
        use_proxies=not server.is_ours,
        outcome=outcome,
    )
    return _Served(engine, upstream, watch)


def request_settings(settings: Engine) -> RequestSettings:
    """Return how requests are written; a form that is set explicitly is never changed by what a server refuses.

    Raises:
        ConfigurationError: ``extra_body`` would replace the model, the messages or the kind of reply.
    """
    reserved = {"model", "messages", "stream"} & settings.extra_body.keys()
    if reserved:
        raise ConfigurationError(f"engine.extra_body: {', '.join(sorted(reserved))} cannot be set there")
    chosen: dict[str, str | bool] = {}
    if settings.token_field != "auto":
        chosen["token_field"] = settings.token_field
    for name, value in (
        ("has_temperature", settings.temperature_field),
        ("has_stream_options", settings.stream_options),
        ("has_system_role", settings.system_role),
        ("has_sampling_fields", settings.sampling_fields),
    ):
        if value != "auto":
            chosen[name] = value == "send"
    is_vllm = settings.kind == "vllm"
    extra = dict(settings.extra_body)
    if settings.chat_template_kwargs:
        extra["chat_template_kwargs"] = settings.chat_template_kwargs | extra.get("chat_template_kwargs", {})
    form = replace(RequestForm(has_sampling_fields=is_vllm), **chosen)  # pyright: ignore[reportArgumentType]
    return RequestSettings(form, frozenset(chosen), extra, structured_outputs=is_vllm or settings.structured_outputs)


def _at_url(settings: Engine, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    if not settings.base_url or not settings.model:
        raise ConfigurationError("engine.kind 'url' needs engine.base_url and engine.model")
    server = _Server(settings.base_url, settings.model, is_ours=False)
    served = _served(settings, server, name, metrics.engine(name), health)
    starters: list[Step] = [served.watch.start] if settings.probe else []
    return BuiltEngine(served.engine, served.upstream, starters=starters, closers=served.closers())


def _vllm(settings: Engine, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    command = _vllm_command(settings.vllm)
    served = _served(
        settings, _Server(command.base_url, command.served_name, is_ours=True), name, metrics.engine(name), health
    )
    up, restarts = metrics.engine_up.labels(name), metrics.engine_restarts.labels(name)
    up.set(0)
    part = f"{name}'s model server"

    def lost(reason: str) -> None:
        up.set(0)
        restarts.inc()
        health.set_failing(part, reason)

    def ready() -> None:
        up.set(1)
        health.set_working(part)
        health.set_working(name)  # the server has just generated

    async def start() -> None:
        await server.start()
        up.set(1)

    server = VllmServer(
        command,
        probe=served.engine.probe,
        listener=Listener(lost, ready),
        log_file=settings.vllm.log_file,
        start_seconds=settings.vllm.start_seconds,
    )
    closers = [server.stop, *served.closers()]
    return BuiltEngine(served.engine, served.upstream, starters=[start], closers=closers)


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
    command.arguments()  # raises now, at start, if there is no such executable
    return command


def secret(value: SecretStr | None) -> str | None:
    """Return the text of a secret setting."""
    return None if value is None else value.get_secret_value()
