"""Builds the engine and the servers of the policy server, and runs them."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.server_runner import run_servers
from searchrl.storage.artifact_manifest import read_artifact
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.policy_server.http_routes import completions_router
from services.policy_server.metrics import EngineCollector
from services.policy_server.settings import PolicyServerSettings
from services.trainer.engines.torch_engine import TorchEngine

FULL_NAME = "searchrl.PolicyServer"
"""Name under which gRPC health checks report the server, which has no other gRPC methods."""


def trained_steps(folder: Path) -> int:
    """Return the training step of a published model, which is its policy version; 0 if its manifest names none."""
    artifact = read_artifact(folder)
    return int(artifact.metadata.get("step", 0)) if artifact else 0


async def serve(settings: PolicyServerSettings) -> None:
    """Load the model and serve until the process is asked to stop.

    Raises:
        ConfigurationError: the model cannot be used, or a port is taken.
    """
    # The step of the trainer that wrote the folder: answers then name the same version as during training.
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
    # The gRPC server must be built in the running event loop, as everywhere; it serves health checks only.
    await run_servers(
        build_grpc_server(lambda _server: None, full_name=FULL_NAME, keys=keys, health=health, registry=registry),
        build_http_app("SearchRL policy server", [router], keys=keys, health=health, registry=registry),
        settings=settings,
        health=health,
        drain=engine.close,
    )
