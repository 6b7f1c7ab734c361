"""Builds the generator from its settings."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1.generator_pb2_grpc import add_GeneratorServicer_to_server
from searchrl.errors import ConfigurationError
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.http_middleware import error_body
from searchrl.platform.server.serve import ServiceSpec
from services.generator.answer_service import Admission, AnswerService, GenerationService
from services.generator.engines import ENGINES
from services.generator.engines.base import BuiltEngine, ChatEngine, Hook
from services.generator.engines.settings import ChatEngineSettings
from services.generator.grpc_servicer import GeneratorServicer
from services.generator.http_routes import MIRRORS, openai_router, rest_router
from services.generator.judging.judge import Judge
from services.generator.methods import METHODS
from services.generator.methods.base import AnsweringMethod, MethodParts
from services.generator.methods.s3 import SearcherRun, build_searcher
from services.generator.metrics import GeneratorMetrics
from services.generator.openai_api.chat_completions import ChatCompletions
from services.generator.openai_api.chat_response import openai_error
from services.generator.prompting.context_answerer import ContextAnswerer, ContextSettings
from services.generator.prompting.context_template import ContextTemplate, ModelTokenCounter, WordCounter
from services.generator.settings import GeneratorSettings


@dataclass(slots=True)
class GeneratorParts:
    """The parts of the generator: what the transports call, and what ``start`` and ``stop`` run."""

    health: Health
    metrics: GeneratorMetrics
    answers: AnswerService
    generations: GenerationService
    chat_completions: ChatCompletions
    starters: list[Hook] = field(default_factory=list)
    closers: list[Hook] = field(default_factory=list)

    async def start(self) -> None:
        """Start the engines, after the ports are open; return when every engine process has generated."""
        # One after the other: two vLLM processes that measure free GPU memory at the same time would both claim it.
        for starter in self.starters:
            await starter()

    async def stop(self) -> None:
        """Close the parts in reverse order, once no request is in flight."""
        for closer in reversed(self.closers):
            await closer()


def build_service(settings: GeneratorSettings, registry: CollectorRegistry = REGISTRY) -> GeneratorParts:
    """Build everything; nothing is started or connected yet.

    Raises:
        ConfigurationError: the settings name something that does not exist.
    """
    metrics, health, limits = GeneratorMetrics(registry), Health(), settings.limits
    generator = _build_engine(settings.engine, "generator", metrics, health)
    judging: BuiltEngine | None = None
    if settings.judge.engine is not None:
        judging = _build_engine(settings.judge.engine, "judge", metrics, health)
    engines = [built for built in (generator, judging) if built is not None]
    closers = [closer for built in engines for closer in built.closers]
    answerer = _build_answerer(generator.engine, settings.context, settings.engine)
    judge = Judge((judging or generator).engine, metrics, settings.judge)
    methods = _build_methods(_build_method_parts(settings, answerer, closers))
    answers = AnswerService(methods, limits, Admission("answers", limits.max_answers, metrics), metrics)
    # One admission for both users of the engine: direct generations over gRPC, and requests that the OpenAI API
    # forwards.
    generating = Admission("generations", limits.max_generations, metrics)
    return GeneratorParts(
        health=health,
        metrics=metrics,
        answers=answers,
        generations=GenerationService(answerer, judge, generating),
        chat_completions=ChatCompletions(answers, generator.engine, generator.upstream, generating),
        starters=[starter for built in engines for starter in built.starters],
        closers=closers,
    )


def service_spec(parts: GeneratorParts, settings: GeneratorSettings) -> ServiceSpec:
    """Describe the generator to the servers."""
    servicer = GeneratorServicer(parts.answers, parts.generations)
    return ServiceSpec(
        name="generator",
        full_name=pb.DESCRIPTOR.services_by_name["Generator"].full_name,
        register=partial(add_GeneratorServicer_to_server, servicer),
        routers=[rest_router(servicer), openai_router(parts.chat_completions)],
        registry=parts.metrics.registry,
        keys=KeyRing.from_file(settings.auth_keys_file),
        health=parts.health,
        # Clients of OpenAI's API also call paths that are not served, and parse the body of the 404.
        error_shapes={"/": openai_error, **dict.fromkeys((mirror.path for mirror in MIRRORS), error_body)},
        start=parts.start,
        drain=parts.stop,
    )


def _build_engine(settings: ChatEngineSettings, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    """Build the engine called ``name`` (generator or judge) in the metrics and in the reasons of readiness.

    Raises:
        ConfigurationError: a setting that its kind needs is missing, or names something that does not exist.
    """
    metrics.engine_supervised.labels(name).set(settings.kind == "vllm")
    metrics.engine_restarts.labels(name)  # exported as 0 from the start, so that the first restart is an increase
    return ENGINES[settings.kind](settings, name, metrics, health)


def _build_answerer(engine: ChatEngine, settings: ContextSettings, model: ChatEngineSettings) -> ContextAnswerer:
    # A model served from its folder brings its own tokenizer, so that its budget is counted exactly without a setting.
    model_folder = Path(model.vllm.model) if model.kind == "vllm" and Path(model.vllm.model).is_dir() else None
    tokenizer_dir = settings.tokenizer_dir or model_folder
    counter = WordCounter() if tokenizer_dir is None else ModelTokenCounter(tokenizer_dir)
    if settings.template_file is None:
        template = ContextTemplate(counter, settings.max_tokens)
    else:
        template = ContextTemplate.from_file(settings.template_file, counter, settings.max_tokens)
    context_length = model.vllm.max_model_len if model.kind == "vllm" else None
    answerer = ContextAnswerer(engine, template, settings, context_length=context_length)
    if not answerer.document_budget():
        raise ConfigurationError("engine.vllm.max_model_len leaves no room for documents beside the answer")
    return answerer


def _build_method_parts(settings: GeneratorSettings, answerer: ContextAnswerer, closers: list[Hook]) -> MethodParts:
    """Build what methods need; what it opens is added to ``closers``."""
    if settings.retriever is None:
        if settings.searcher is not None:
            raise ConfigurationError("a searcher needs a retriever: set retriever.target")
        return MethodParts(answerer)
    target = settings.retriever
    key = None if target.key is None else target.key.get_secret_value()
    retriever = RetrieverClient(target.target, key=key, timeout_seconds=target.timeout_seconds, mode=target.mode)
    closers.append(retriever.close)
    searcher: SearcherRun | None = None
    if settings.searcher is not None:
        searcher, policy = build_searcher(settings.searcher, retriever)
        closers.append(policy.close)
    return MethodParts(answerer, retriever, searcher, settings.context.top_k)


def _build_methods(parts: MethodParts) -> dict[str, AnsweringMethod]:
    """Build the methods whose parts are present; without a retriever only ``direct``."""
    built = (method.build(parts) for method in METHODS.values())
    return {method.name: method for method in built if method is not None}
