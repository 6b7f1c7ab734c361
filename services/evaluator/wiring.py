"""Builds the evaluator from its settings; the only module that knows the concrete classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1.evaluator_pb2_grpc import add_EvaluatorServicer_to_server
from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from searchrl.platform.retry import ONE_ATTEMPT
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.serve import ServiceSpec
from services.evaluator.baselines.s3_files import StoredContext
from services.evaluator.baselines.stored_contexts import StoredContextGenerator
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.grpc_servicer import EvaluatorServicer
from services.evaluator.http_routes import page_router, rest_router
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.runs.episode_runner import AnsweringGenerator, RemoteGenerator
from services.evaluator.runs.run_executor import RemotePassages, RunExecutor
from services.evaluator.settings import EvaluatorSettings, Target
from services.evaluator.store.run_store import RunStore


@dataclass(frozen=True, slots=True)
class Parts:
    """The service and the parts that its owner has to close."""

    service: EvaluationService
    store: RunStore
    generator: GeneratorClient
    retriever: RetrieverClient | None

    async def close_clients(self) -> None:
        await self.generator.close()
        if self.retriever is not None:
            await self.retriever.close()


def build_parts(
    settings: EvaluatorSettings,
    metrics: EvaluatorMetrics,
    contexts: Sequence[StoredContext] = (),
    health: Health | None = None,
) -> Parts:
    """Open the store and connect to the other services; ``contexts`` add the method ``stored_context``.

    ``health`` is not ready while the store cannot be written.

    Raises:
        ConfigurationError: the store is unusable or another process writes to it, or no generator is named.
    """
    if not settings.generator.target:
        raise ConfigurationError("name the generator service: set generator.target to its host:port")
    store = RunStore.open(settings.store, settings.journal, health)
    generator = build_generator_client(settings.generator)
    retriever = build_retriever_client(settings.retriever) if settings.retriever.target else None
    answering: AnsweringGenerator = RemoteGenerator(generator)
    if contexts:
        answering = StoredContextGenerator(answering, generator, contexts)
    passages = RemotePassages(retriever) if retriever else None
    executor = RunExecutor(store, answering, passages, metrics, settings.runs)
    service = EvaluationService(store, answering, passages, executor, metrics, questions_dir=settings.questions_dir)
    return Parts(service, store, generator, retriever)


def build_generator_client(target: Target) -> GeneratorClient:
    """A client without retries: the episode runner retries, so that attempts do not multiply."""
    key = target.key.get_secret_value() if target.key else None
    return GeneratorClient(target.target, key=key, timeout_seconds=target.timeout_seconds, retries=ONE_ATTEMPT)


def build_retriever_client(target: Target) -> RetrieverClient:
    key = target.key.get_secret_value() if target.key else None
    return RetrieverClient(target.target, key=key, timeout_seconds=target.timeout_seconds)


def build_spec(settings: EvaluatorSettings) -> ServiceSpec:
    """Build everything that the process serves; runs that were in progress continue at its start."""
    metrics, health = EvaluatorMetrics(), Health()
    parts = build_parts(settings, metrics, health=health)
    service = parts.service

    async def drain() -> None:
        # Runs call the clients until they have ended.
        await service.stop()
        await parts.close_clients()

    # At the start of draining, not at its end: watches are open calls, which the servers would otherwise wait for.
    health.subscribe_in_loop(lambda _ready: service.begin_stop() if health.draining else None)
    keys = KeyRing.from_file(settings.auth_keys_file)
    return replace(service_spec(service, keys, health, metrics), start=service.start, drain=drain)


def service_spec(service: EvaluationService, keys: KeyRing, health: Health, metrics: EvaluatorMetrics) -> ServiceSpec:
    """Describe the evaluator to the servers."""
    servicer = EvaluatorServicer(service)
    return ServiceSpec(
        name="evaluator",
        full_name=pb.DESCRIPTOR.services_by_name["Evaluator"].full_name,
        register=partial(add_EvaluatorServicer_to_server, servicer),
        routers=[rest_router(servicer), page_router(service)],
        registry=metrics.registry,
        keys=keys,
        health=health,
    )
