"""A generator assembled from fakes: everything between the transports and the engine is real."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.passage import Passage
from searchrl.platform.health import Health
from services.generator.answer_service import Admission, AnswerService, GenerationService, RequestLimits
from services.generator.engines.base import ChatEngine
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.judging.judge import Judge, JudgeSettings
from services.generator.methods.base import AnsweringMethod
from services.generator.metrics import GeneratorMetrics
from services.generator.openai_api.chat_completions import ChatCompletions
from services.generator.prompting.context_answerer import ContextAnswerer, ContextSettings
from services.generator.prompting.context_template import ContextTemplate, WordCounter
from services.generator.wiring import GeneratorParts
from tests.fakes.in_memory_searcher import InMemorySearcher

PASSAGES = (
    Passage("film", "Amber Falcon", "Amber Falcon was directed by Jon Reed."),
    Passage("person", "Jon Reed", "Jon Reed was born in Port Ellis."),
    Passage("city", "Port Ellis", "Port Ellis lies in Norvale."),
    Passage("other", "Blue Harbor", "Blue Harbor was directed by Mia Stone."),
)


class PassageStore(InMemorySearcher, RetrieverClient):
    """A retriever's client without a retriever: it searches, and returns passages by id."""

    async def get_passages(self, ids: Sequence[str]) -> list[Passage]:
        by_id = {passage.id: passage for passage in self._passages}
        return [by_id[id] for id in ids if id in by_id]

    async def get_passages_with_generation(self, ids: Sequence[str]) -> tuple[list[Passage], str]:
        return await self.get_passages(ids), self._generation()


def answerer_of(engine: ChatEngine, max_context_tokens: int = 1000) -> ContextAnswerer:
    template = ContextTemplate(WordCounter(1.0), max_context_tokens)
    return ContextAnswerer(engine, template, ContextSettings(max_answer_tokens=32))


def parts_of(
    engine: ChatEngine,
    methods: Sequence[AnsweringMethod] = (),
    *,
    upstream: UpstreamApi | None = None,
    limits: RequestLimits | None = None,
    max_answers: int = 8,
    max_generations: int = 8,
) -> GeneratorParts:
    """Return the parts that ``wiring.build_service`` would build."""
    metrics = GeneratorMetrics(CollectorRegistry())
    answers = AnswerService(
        {method.name: method for method in methods},
        limits or RequestLimits(),
        Admission("answers", max_answers, metrics),
        metrics,
    )
    generating = Admission("generations", max_generations, metrics)
    judge = Judge(engine, metrics, JudgeSettings(cached_verdicts=100))
    return GeneratorParts(
        health=Health(),
        metrics=metrics,
        answers=answers,
        generations=GenerationService(answerer_of(engine), judge, generating),
        chat_completions=ChatCompletions(answers, engine, upstream, generating),
    )
