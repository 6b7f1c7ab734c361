"""Builds the policy server from its settings: the engine, the tokenizer and the routes."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.serve import ServiceSpec
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


def build_spec(settings: PolicyServerSettings) -> ServiceSpec:
    """Load the model and describe the policy server to the servers.

    Raises:
        ConfigurationError: the model cannot be used.
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
    return ServiceSpec(
        name="policy server",
        full_name=FULL_NAME,
        register=lambda _server: None,  # gRPC answers health checks only
        routers=[completions_router(engine, tokenizer, settings.name or settings.model.name)],
        registry=registry,
        keys=KeyRing.from_file(settings.auth_keys_file),
        health=health,
        drain=engine.close,
    )
