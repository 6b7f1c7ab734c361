"""A generator behind real HTTP servers, and the questions that the tests of its OpenAI routes send."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Limits
from services.generator.engines.base import ChatEngine
from services.generator.engines.reader import ReaderEngine
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.methods.base import AnsweringMethod
from services.generator.methods.direct import DirectMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.s3 import S3Method, SearcherRun
from services.generator.settings import GeneratorSettings
from services.generator.wiring import service_spec
from tests.contract.harness import running
from tests.fakes.generator_parts import PASSAGES, PassageStore, answerer_of, parts_of
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy

DIRECTOR = "What is the director of Amber Falcon?"
BIRTHPLACE = "What is the birthplace of the director of Amber Falcon?"
SEARCH = (
    "<important_info>[1]</important_info><search_complete>False</search_complete>"
    '<query>{"query": "Jon Reed birthplace"}</query>'
)
FINISH = "<important_info>[1]</important_info><search_complete>True</search_complete>"


@dataclass(frozen=True, slots=True)
class RunningGenerator:
    """A running HTTP server of the generator."""

    url: str

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


def methods_with(engine: ChatEngine, store: PassageStore) -> list[AnsweringMethod]:
    tokenizer = CharacterTokenizer()
    profile = SearcherProfile(template="Find: {question} {documents}", limits=Limits(max_searches=3, top_k=2))
    run = SearcherRun(ScriptedPolicy([SEARCH, FINISH], tokenizer), store, tokenizer, profile)
    answerer = answerer_of(engine)
    return [DirectMethod(answerer), RagMethod(store, answerer, 3), S3Method(run, answerer)]


@asynccontextmanager
async def run_generator(
    engine: ChatEngine,
    methods: Sequence[AnsweringMethod] = (),
    upstream: UpstreamApi | None = None,
    keys_file: Path | None = None,
    **limits: Any,
) -> AsyncIterator[RunningGenerator]:
    """Run the generator's servers over an engine and methods, without a real model."""
    parts = parts_of(engine, methods, upstream=upstream, **limits)
    settings = GeneratorSettings(auth_keys_file=keys_file)
    spec = service_spec(parts, settings)
    async with running(spec.build_grpc_server(), spec.build_http_app(), parts.health) as both:
        yield RunningGenerator(both.http_url)


@pytest.fixture
async def generator() -> AsyncIterator[RunningGenerator]:
    engine = ReaderEngine()
    async with run_generator(engine, methods_with(engine, PassageStore(PASSAGES))) as opened:
        yield opened


def ask(question: str) -> list[Any]:
    return [{"role": "system", "content": "ignored"}, {"role": "user", "content": question}]
