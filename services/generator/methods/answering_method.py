"""Defines answering methods, their options and steps, and the last step that most of them share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from searchrl.agent.search_loop import LoopEvent
from searchrl.domain.answer import Answer, Provenance, TextWritten
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from services.generator.methods.recorded_calls import RecordingRetriever
from services.generator.prompting.context_answerer import DEFAULT_REPLY, ContextAnswerer, ReplyOptions


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a caller may change per question; None: the method's default. ``reply`` is about the generator's call."""

    top_k: int | None = None
    max_searches: int | None = None
    temperature: float | None = None
    seed: int | None = None
    reply: ReplyOptions = DEFAULT_REPLY


Step = LoopEvent | TextWritten
Emit = Callable[[Step], Awaitable[None]]


class AnsweringMethod(Protocol):
    """One way of answering."""

    name: str

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> Answer:
        """Answer ``question``, and pass each step to ``emit`` as it happens.

        Raises:
            searchrl.errors.ServiceError: a dependency failed; that never becomes an answer.
        """
        ...


async def answer_from_documents(
    answerer: ContextAnswerer,
    question: Question,
    documents: Sequence[Passage],
    emit: Emit,
    *,
    options: AnswerOptions,
    searches: int = 0,
    retrieval: RecordingRetriever | None = None,
    top_k: int = 0,
) -> Answer:
    """Let the generator answer from the documents that ``retrieval`` gathered; the last step of most methods."""

    async def emit_text(text: str) -> None:
        await emit(TextWritten(text))

    written = await answerer.write(question.generator_text, documents, emit_text, options.reply)
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
