"""Builds the engines behind a model server: at any URL, or a vLLM process that the service supervises."""

from dataclasses import dataclass

from searchrl.errors import ConfigurationError
from searchrl.model_server.vllm_command import VllmCommand, find_free_port, require_chat_template
from searchrl.model_server.vllm_server import Listener, VllmServer
from searchrl.platform.health import Health
from services.generator.engines.base import BuiltEngine, Hook
from services.generator.engines.engine_watch import EngineWatch
from services.generator.engines.openai import OpenAIEngine
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.metrics import GeneratorMetrics


@dataclass(frozen=True, slots=True)
class Connection:
    """The two clients of a model server, and the watch over it."""

    engine: OpenAIEngine
    upstream: UpstreamApi
    watch: EngineWatch

    def closers(self, *, server: VllmServer | None = None) -> list[Hook]:
        """Return what stops the parts, in the order of building; the service calls them in reverse."""
        # The watch is stopped first, then the server's restarts: both probe through the engine's connections.
        supervised = [] if server is None else [server.stop]
        return [self.upstream.close, self.engine.close, *supervised, self.watch.stop]


def build_url(settings: ChatEngineSettings, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    """Build the engine of a server that others run.

    Raises:
        ConfigurationError: the address or the model's name is missing.
    """
    if not settings.base_url or not settings.model:
        raise ConfigurationError("engine.kind 'url' needs engine.base_url and engine.model")
    connection = _connect(settings, name, metrics, health)
    starters: list[Hook] = [connection.watch.start] if settings.probe else []
    return BuiltEngine(connection.engine, connection.upstream, starters=starters, closers=connection.closers())


def build_vllm(settings: ChatEngineSettings, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    """Build the engine of a vLLM process of this service; it is not started yet.

    Raises:
        ConfigurationError: the model, its chat template or the executable is missing.
    """
    vllm = settings.vllm
    if not vllm.model:
        raise ConfigurationError("engine.kind 'vllm' needs engine.vllm.model, a model folder or a name on a hub")
    require_chat_template(vllm.model, vllm.chat_template)
    command = VllmCommand(vllm, find_free_port())
    command.arguments()  # raises now, at start, if there is no such executable
    # The key and the headers of kind url are those of another server.
    local = {"base_url": command.base_url, "model": command.served_name, "key": None, "headers": {}}
    connection = _connect(settings.model_copy(update=local), name, metrics, health, use_proxies=False)
    up, restarts = metrics.engine_up.labels(name), metrics.engine_restarts.labels(name)
    # Exported before the first start, so that an alert sees a server that never comes up.
    up.set(0)
    part = f"{name}'s model server"

    def on_lost(reason: str) -> None:
        up.set(0)
        restarts.inc()
        health.set_failing(part, reason)

    def on_ready() -> None:
        up.set(1)
        health.set_working(part)
        health.set_working(name)  # the server has just generated

    async def start() -> None:
        await server.start()
        up.set(1)

    server = VllmServer(command, probe=connection.engine.probe, listener=Listener(on_lost, on_ready))
    closers = connection.closers(server=server)
    return BuiltEngine(connection.engine, connection.upstream, starters=[start], closers=closers)


def _connect(
    settings: ChatEngineSettings, name: str, metrics: GeneratorMetrics, health: Health, *, use_proxies: bool = True
) -> Connection:
    # a lambda, because the engine below gets the watch's ``record``, and the watch calls the engine
    watch = EngineWatch(name, lambda: engine.probe(), health)
    outcome = watch.record if settings.probe else None
    measured = metrics.engine(name)
    engine = OpenAIEngine(settings, measured, use_proxies=use_proxies, outcome=outcome)
    upstream = UpstreamApi(settings, measured, use_proxies=use_proxies, outcome=outcome)
    return Connection(engine, upstream, watch)
