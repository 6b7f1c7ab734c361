"""Serve a tiny searcher: ``python -m services.trainer.engines.policy_server --model DIR --port 8000``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import Field, PositiveInt
from pydantic_settings import SettingsConfigDict

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import ServiceSettings
from searchrl.platform.termination_log import write_termination_message
from searchrl.storage.artifact_manifest import read_artifact
from services.trainer.engines.base import RolloutEngine

FULL_NAME = "searchrl.PolicyServer"
"""Name under which gRPC health checks report the server, which has no other gRPC methods."""


class PolicyServerSettings(ServiceSettings):
    """Which model is served, and where."""

    model_config = SettingsConfigDict(env_prefix="POLICY_SERVER_")

    model: Path = Field(description="Model folder.")
    name: str = Field(default="", description="The model's name in requests; empty: the folder's name.")
    slots: PositiveInt = Field(default=256, description="Rollouts whose cache is kept, and rows decoded at once.")
    threads: PositiveInt = Field(default=1, description="Threads of torch.")


class EngineCollector:
    """Exports the engine's counters as they are at the moment of a scrape."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine

    def collect(self) -> list[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        counters = self._engine.counters()
        tokens = CounterMetricFamily("searchrl_policy_server_tokens", "Tokens by what became of them.", labels=["kind"])
        tokens.add_metric(["prompt"], counters.prompt_tokens)
        tokens.add_metric(["reused"], counters.reused_tokens)
        tokens.add_metric(["sampled"], counters.sampled_tokens)
        seconds = CounterMetricFamily("searchrl_policy_server_busy_seconds", "Time spent decoding.")
        seconds.add_metric([], counters.decode_seconds)
        waiting = GaugeMetricFamily("searchrl_policy_server_requests_waiting", "Requests that wait for a slot.")
        waiting.add_metric([], counters.waiting)
        return [tokens, seconds, waiting]


def trained_steps(folder: Path) -> int:
    """Training step of a published model, which is its policy version; 0 if its manifest names none."""
    artifact = read_artifact(folder)
    return int(artifact.metadata.get("step", 0)) if artifact else 0


async def serve(settings: PolicyServerSettings) -> None:
    """Load the model and serve until the process is asked to stop."""
    from searchrl.platform.health import Health
    from searchrl.platform.server.auth import KeyRing  # heavy imports wait for valid settings
    from searchrl.platform.server.grpc_server import build_grpc_server
    from searchrl.platform.server.http_app import build_http_app
    from searchrl.platform.server.server_runner import run_servers
    from searchrl.tokenization.model_tokenizer import ModelTokenizer
    from services.trainer.engines.completions_api import completions_router
    from services.trainer.engines.torch_engine import TorchEngine

    version = trained_steps(settings.model)
    health = Health()
    engine = TorchEngine.from_folder(
        settings.model, slots=settings.slots, threads=settings.threads, version=version, health=health
    )
    tokenizer = ModelTokenizer.from_folder(settings.model)
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    keys = KeyRing.from_file(settings.auth_keys_file)
    router = completions_router(engine, tokenizer, settings.name or settings.model.name)
    await run_servers(
        build_grpc_server(lambda _server: None, full_name=FULL_NAME, keys=keys, health=health, registry=registry),
        build_http_app("SearchRL policy server", [router], keys=keys, health=health, registry=registry),
        settings=settings,
        health=health,
        drain=engine.close,
    )


def read_settings(argv: Sequence[str] | None) -> PolicyServerSettings:
    """Read the settings from short flags for the common ones, ``--set`` and the environment."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.engines.policy_server", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder with config, weights and tokenizer.json")
    parser.add_argument("--port", type=int, help="HTTP port; 0 lets the system choose")
    parser.add_argument("--ready-file", type=Path, help="written with the chosen ports once ready")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    arguments = parser.parse_args(argv)
    flags = {
        "model": arguments.model,
        "ready_file": arguments.ready_file,
        "listen.http_port": arguments.port,
        # with --port, gRPC (probes only) takes a free port, so that two servers on one machine do not collide
        "listen.grpc_port": None if arguments.port is None else 0,
    }
    given = [f"--set={name}={value}" for name, value in flags.items() if value is not None]
    return PolicyServerSettings.from_environment([*given, *(f"--set={text}" for text in arguments.set)])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; exit code 2 if the settings or the model cannot be used."""
    from searchrl.platform.server.serve import run_on_fast_loop
    from searchrl.platform.telemetry.logging_setup import set_up_logging
    from searchrl.platform.telemetry.trace_export import set_up_tracing

    try:
        settings = read_settings(argv)
        set_up_logging("policy_server", settings.log_format)
        set_up_tracing("policy-server", settings.traces_endpoint)
        run_on_fast_loop(serve(settings))
    except ConfigurationError as error:
        write_termination_message(f"policy_server: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
