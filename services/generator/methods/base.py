"""Defines what an answering method is, what it is built from, and the step that most methods end with."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, SecretStr

from searchrl.agent.types import LoopEvent
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.answer import Answer, Provenance, TextWritten
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.platform.settings import Section
from services.generator.prompting.context_answerer import DEFAULT_REPLY, ContextAnswerer, ReplyOptions

if TYPE_CHECKING:
    # Only for the type: s3 imports this module.
    from services.generator.methods.s3 import SearcherRun


class RetrieverSettings(Section):
    """Where passages come from."""

    target: str = Field(description="host:port of the retriever's gRPC server.")
    key: SecretStr | None = Field(default=None, description="API key of the retriever.")
    mode: Literal["", "bm25", "dense", "hybrid"] = Field(default="", description="If empty, the index's default.")
    timeout_seconds: PositiveFloat = Field(default=30.0, description="Time for one search, retries included.")


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """How a method answers one question.

    Attributes:
        top_k: passages per search.
        max_searches: searches after the initial one; None: as many as the method finds queries for.
        temperature: of the searcher; 0 is greedy.
        reply: how the generator is called.
    """

    top_k: int = 0
    max_searches: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    reply: ReplyOptions = DEFAULT_REPLY


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a caller may set per question; None: the method's default."""

    top_k: int | None = None
    max_searches: int | None = None
    temperature: float | None = None
    seed: int | None = None
    reply: ReplyOptions = DEFAULT_REPLY

    def over(self, defaults: MethodOptions) -> MethodOptions:
        """Return ``defaults`` with the options that are set."""
        # The two classes have the same fields; None, unlike 0, means that the caller has set nothing.
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})


Step = LoopEvent | TextWritten
Emit = Callable[[Step], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class MethodParts:
    """What methods are built from; one whose parts are missing is not served. ``top_k`` is the default per search."""

    answerer: ContextAnswerer
    retriever: RetrieverClient | None = None
    searcher: "SearcherRun | None" = None
    top_k: int = 3


class AnsweringMethod(ABC):
    """One way of answering.

    Attributes:
        name: in requests, metrics and reports.
        defaults: the options of a question that sets none.
    """

    name: ClassVar[str]
    defaults: MethodOptions

    @classmethod
    @abstractmethod
    def build(cls, parts: MethodParts) -> Self | None:
        """Return the method; None if a part that it needs is missing."""

    @abstractmethod
    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        """Answer ``question``, and pass each step to ``emit`` as it happens.

        Raises:
            searchrl.errors.ServiceError: a dependency failed; that never becomes an answer.
        """


class RetrievalMethod(AnsweringMethod):
    """A method whose documents come from the retriever, without a searcher."""

    def __init__(self, retriever: RetrieverClient, answerer: ContextAnswerer, top_k: int = 0) -> None:
        self._retriever = retriever
        self._answerer = answerer
        self.defaults = MethodOptions(top_k=top_k)

    @classmethod
    def build(cls, parts: MethodParts) -> Self | None:
        return None if parts.retriever is None else cls(parts.retriever, parts.answerer, parts.top_k)


class RecordingRetriever:
    """The retriever during one answer, which records the index generations that served it; a ``Searcher``."""

    def __init__(self, retriever: RetrieverClient) -> None:
        self._retriever = retriever
        # A dict as an ordered set. More than one generation: the index was replaced during the answer.
        self._generations: dict[str, None] = {}
        self.mode = retriever.mode

    @property
    def index_generations(self) -> tuple[str, ...]:
        """The generations that served the answer so far, in order of first use."""
        return tuple(self._generations)

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        """See ``searchrl.agent.types.Searcher``."""
        results, generation = await self._retriever.search_with_generation(queries, top_k, filters)
        self._record(generation)
        return results

    async def get_passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return passages in the order of ``ids``; unknown ids are left out."""
        passages, generation = await self._retriever.get_passages_with_generation(ids)
        self._record(generation)
        return passages

    def _record(self, generation: str) -> None:
        if generation:
            self._generations[generation] = None


async def answer_from_documents(
    answerer: ContextAnswerer,
    question: Question,
    documents: Sequence[Passage],
    emit: Emit,
    *,
    options: MethodOptions,
    searches: int = 0,
    retrieval: RecordingRetriever | None = None,
    top_k: int = 0,
) -> Answer:
    """Let the generator answer from the documents that ``retrieval`` gathered; the last step of most methods."""
    written = await answerer.write(question.generator_text, documents, emit, options.reply)
    return replace(
        written,
        searches=searches,
        stop_reason="completed",
        provenance=add_retrieval(written.provenance, retrieval, top_k),
    )


def add_retrieval(provenance: Provenance, retrieval: RecordingRetriever | None, top_k: int) -> Provenance:
    """Add the index, mode and ``top_k`` of the searches; without retrieval, return ``provenance`` unchanged."""
    if retrieval is None:
        return provenance
    return replace(provenance, index_generations=retrieval.index_generations, mode=retrieval.mode, top_k=top_k)
