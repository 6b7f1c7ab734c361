"""Builds the generator from its settings; ``engine_wiring`` builds the engines and ``method_wiring`` the methods."""

from dataclasses import dataclass, field
from pathlib import Path

import grpc
from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry

from searchrl.contracts.v1 import generator_pb2_grpc as rpc
from searchrl.errors import ConfigurationError
from searchrl.platform import grpc_server, http_app
from searchrl.platform.auth import KeyRing
from searchrl.platform.health import Health
from searchrl.platform.http_middleware import error_body
from services.generator.admission import Admission
from services.generator.answer_service import AnswerLimits, AnswerService
from services.generator.engine_wiring import BuiltEngine, build_engine
from services.generator.engines.chat_engine import ChatEngine
from services.generator.generation_service import GenerationService
from services.generator.grpc_servicer import GeneratorServicer
from services.generator.http_routes import MIRRORS, generator_router
from services.generator.judging.judge import Judge
from services.generator.judging.verdict_cache import VerdictCache
from services.generator.lifecycle import Step
from services.generator.method_wiring import build_methods
from services.generator.metrics import GeneratorMetrics
from services.generator.openai_api.chat_completions import ChatCompletions
from services.generator.openai_api.error_shape import openai_error
from services.generator.openai_api.routes import openai_router
from services.generator.prompting.context_answerer import ContextAnswerer
from services.generator.prompting.context_template import ContextTemplate
from services.generator.prompting.token_counter import ModelTokenCounter, WordCounter
from services.generator.settings import Context, Engine, GeneratorSettings, Limits

FULL_NAME = "searchrl.contracts.v1.Generator"
PROMPT_RESERVE_TOKENS = 512
"""Reserved for the question and the instruction if the model's context length is known."""


@dataclass(slots=True)
class GeneratorParts:
    """The parts of the generator: what the transports call, and what ``start`` and ``stop`` run."""

    health: Health
    metrics: GeneratorMetrics
    answers: AnswerService
    generations: GenerationService
    chat_completions: ChatCompletions
    starters: list[Step] = field(default_factory=list)
    closers: list[Step] = field(default_factory=list)

    async def start(self) -> None:
        """Start the engines, after the ports are open; return when every engine process has generated."""
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
    generator = build_engine(settings.engine, "generator", metrics, health)
    judging: BuiltEngine | None = None
    if settings.judge.engine is not None:
        judging = build_engine(settings.judge.engine, "judge", metrics, health)
    engines = [built for built in (generator, judging) if built is not None]
    closers = [closer for built in engines for closer in built.closers]
    answerer = _build_answerer(generator.engine, settings.context, settings.engine)
    judge = Judge(
        (judging or generator).engine,
        VerdictCache(settings.judge.cached_verdicts),
        metrics,
        settings.judge.max_tokens,
    )
    answers = AnswerService(
        build_methods(settings, answerer, closers),
        _answer_limits(limits),
        Admission("answers", limits.max_answers, metrics),
        metrics,
    )
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
        [generator_router(servicer), openai_router(parts.chat_completions)],
        keys=KeyRing.from_file(settings.auth_keys_file),
        health=parts.health,
        registry=parts.metrics.registry,
        # Clients of OpenAI's API also call paths that are not served, and parse the body of the 404.
        error_shapes={"/": openai_error, **dict.fromkeys((mirror.path for mirror in MIRRORS), error_body)},
    )


def _build_answerer(engine: ChatEngine, settings: Context, model: Engine) -> ContextAnswerer:
    own_folder = Path(model.vllm.model) if model.kind == "vllm" and Path(model.vllm.model).is_dir() else None
    tokenizer_dir = settings.tokenizer_dir or own_folder
    counter = WordCounter() if tokenizer_dir is None else ModelTokenCounter(tokenizer_dir)
    budget = settings.max_tokens
    if model.kind == "vllm" and model.vllm.max_model_len is not None:
        budget = min(budget, model.vllm.max_model_len - settings.max_answer_tokens - PROMPT_RESERVE_TOKENS)
    if budget < 1:
        raise ConfigurationError("engine.vllm.max_model_len leaves no room for documents beside the answer")
    if settings.template_file is None:
        template = ContextTemplate(counter, budget)
    else:
        template = ContextTemplate.from_file(settings.template_file, counter, budget)
    return ContextAnswerer(
        engine, template, max_answer_tokens=settings.max_answer_tokens, temperature=settings.temperature
    )


def _answer_limits(limits: Limits) -> AnswerLimits:
    return AnswerLimits(
        limits.max_top_k,
        limits.max_searches,
        limits.max_question_characters,
        limits.answer_seconds,
        limits.max_conversation_characters,
    )
