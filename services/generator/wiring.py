"""How do the generator's parts fit together? The only place that knows every concrete class."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry
from pydantic import SecretStr

from searchrl.contracts.v1 import generator_pb2_grpc as rpc
from searchrl.platform import grpc_server, http_app
from searchrl.platform.auth import KeyRing
from searchrl.platform.health import Health
from services.generator.answer_service import AnswerLimits, AnswerService
from services.generator.engines.chat_engine import ChatEngine
from services.generator.generation_service import Admission, GenerationService
from services.generator.grpc_servicer import GeneratorServicer
from services.generator.http_routes import generator_router
from services.generator.judging.judge import Judge
from services.generator.judging.verdict_cache import VerdictCache
from services.generator.methods.answering_method import AnsweringMethod
from services.generator.metrics import EngineMetrics, GeneratorMetrics
from services.generator.prompting.context_answerer import ContextAnswerer
from services.generator.settings import Context, Engine, GeneratorSettings, Limits, Retriever, Searcher

FULL_NAME = "searchrl.contracts.v1.Generator"

Step = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class GeneratorParts:
    """The running generator: what the transports call, and what start and stop run."""

    health: Health
    metrics: GeneratorMetrics
    answers: AnswerService
    generations: GenerationService
    starters: list[Step] = field(default_factory=list)
    closers: list[Step] = field(default_factory=list)

    async def start(self) -> None:
        """Runs once the ports are open; returns when every engine has generated."""
        for starter in self.starters:
            await starter()

    async def stop(self) -> None:
        """Runs once no request is in flight."""
        for closer in reversed(self.closers):
            await closer()


def build_service(settings: GeneratorSettings, registry: CollectorRegistry = REGISTRY) -> GeneratorParts:
    """Build everything; nothing is started or connected yet.

    Raises:
        ConfigurationError: the settings name something that is not there.
    """
    metrics = GeneratorMetrics(registry)
    closers: list[Step] = []
    engine = _engine(settings.engine, metrics.engine("generator"), closers)
    judging = engine
    if settings.judge.engine is not None:
        judging = _engine(settings.judge.engine, metrics.engine("judge"), closers)
    answerer = _answerer(engine, settings.context)
    judge = Judge(judging, VerdictCache(settings.judge.cached_verdicts), metrics)
    methods = _methods(settings, answerer, closers)
    limits = settings.limits
    return GeneratorParts(
        health=Health(),
        metrics=metrics,
        answers=AnswerService(
            methods, _answer_limits(limits), Admission("answers", limits.max_answers, metrics), metrics
        ),
        generations=GenerationService(answerer, judge, Admission("generations", limits.max_generations, metrics)),
        closers=closers,
    )


def build_grpc_server(parts: GeneratorParts, settings: GeneratorSettings) -> grpc.aio.Server:
    """Build the gRPC server; call inside the running loop."""
    servicer = GeneratorServicer(parts.answers, parts.generations)
    return grpc_server.build_grpc_server(
        lambda server: rpc.add_GeneratorServicer_to_server(servicer, server),
        full_name=FULL_NAME,
        keys=KeyRing.from_file(settings.auth_keys_file),
        health=parts.health,
        registry=parts.metrics.registry,
    )


def build_http_app(parts: GeneratorParts, settings: GeneratorSettings) -> FastAPI:
    """Build the REST application."""
    servicer = GeneratorServicer(parts.answers, parts.generations)
    return http_app.build_http_app(
        "SearchRL generator",
        [generator_router(servicer)],
        keys=KeyRing.from_file(settings.auth_keys_file),
        health=parts.health,
        registry=parts.metrics.registry,
    )


def _engine(settings: Engine, metrics: EngineMetrics, closers: list[Step]) -> ChatEngine:
    from services.generator.engines.reader_engine import ReaderEngine

    return ReaderEngine()


def _answerer(engine: ChatEngine, settings: Context) -> ContextAnswerer:
    from services.generator.prompting.context_template import WITH_DOCUMENTS, ContextTemplate
    from services.generator.prompting.token_counter import ModelTokenCounter, WordCounter

    counter = WordCounter() if settings.tokenizer_dir is None else ModelTokenCounter(settings.tokenizer_dir)
    if settings.template_file is None:
        template = ContextTemplate(counter, settings.max_tokens, WITH_DOCUMENTS)
    else:
        template = ContextTemplate.from_file(settings.template_file, counter, settings.max_tokens)
    return ContextAnswerer(
        engine, template, max_answer_tokens=settings.max_answer_tokens, temperature=settings.temperature
    )


def _methods(settings: GeneratorSettings, answerer: ContextAnswerer, closers: list[Step]) -> dict[str, AnsweringMethod]:
    from services.generator.methods.direct import DirectMethod
    from services.generator.methods.oracle import OracleMethod
    from services.generator.methods.rag import RagMethod
    from services.generator.methods.random_retriever import RandomRetrieverMethod
    from services.generator.methods.title_heuristic import TitleHeuristicMethod

    methods: list[AnsweringMethod] = [DirectMethod(answerer)]
    if settings.retriever is not None:
        retriever = _retriever(settings.retriever)
        closers.append(retriever.close)
        top_k = settings.context.top_k
        methods.append(RagMethod(retriever, answerer, top_k))
        if settings.searcher is not None:
            methods.append(_searcher_method(settings.searcher, retriever, answerer, closers))
        methods.append(TitleHeuristicMethod(retriever, answerer, top_k))
        methods.append(OracleMethod(retriever, answerer))
        methods.append(RandomRetrieverMethod(retriever, answerer, top_k))
    return {method.name: method for method in methods}


def _retriever(settings: Retriever):
    from searchrl.clients.retriever_client import RetrieverClient

    return RetrieverClient(
        settings.target, key=_secret(settings.key), timeout_seconds=settings.timeout_seconds, mode=settings.mode
    )


def _searcher_method(settings: Searcher, retriever, answerer: ContextAnswerer, closers: list[Step]) -> AnsweringMethod:
    from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
    from searchrl.clients.remote_policy import RemotePolicy
    from searchrl.errors import ConfigurationError
    from searchrl.tokenization.model_tokenizer import ModelTokenizer
    from services.generator.methods.s3 import S3Method
    from services.generator.methods.search_r1 import SearchR1Method
    from services.generator.methods.searcher_run import SearcherRun

    profile_file = settings.model_dir / PROFILE_FILE
    if not profile_file.is_file():
        raise ConfigurationError(f"searcher.model_dir: {profile_file} does not exist; name a searcher's model folder")
    profile = SearcherProfile.from_json(profile_file.read_text())
    policy = RemotePolicy(
        settings.base_url, settings.model, key=_secret(settings.key), timeout_seconds=settings.timeout_seconds
    )
    closers.append(policy.close)
    tokenizer = ModelTokenizer.from_folder(settings.model_dir)
    run = SearcherRun(policy, retriever, tokenizer, profile, settings.temperature)
    return SearchR1Method(run) if profile.protocol == "search_r1" else S3Method(run, answerer)


def _answer_limits(limits: Limits) -> AnswerLimits:
    return AnswerLimits(limits.max_top_k, limits.max_searches, limits.max_question_characters, limits.answer_seconds)


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
