"""Defines answering methods, their options, steps and final answer, and the last step that most of them share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from searchrl.agent.search_loop import LoopEvent
from searchrl.domain.passage import Passage
from searchrl.domain.provenance import UNKNOWN_PROVENANCE, Provenance
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from services.generator.methods.recorded_calls import RecordedRetrieval
from services.generator.prompting.context_answerer import DEFAULT_REPLY, ContextAnswerer, ReplyOptions


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a caller may change per question; None: the method's default. ``reply`` is about the generator's call."""

    top_k: int | None = None
    max_searches: int | None = None
    temperature: float | None = None
    seed: int | None = None
    reply: ReplyOptions = DEFAULT_REPLY


@dataclass(frozen=True, slots=True)
class TextWritten:
    """A piece of the answer, in the order in which the generator writes it."""

    text: str


Step = LoopEvent | TextWritten
Emit = Callable[[Step], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The end of an answer.

    Attributes:
        documents: the passages the generator was given, in order.
        searches: queries that reached the retriever after the initial one.
        prompt_tokens, completion_tokens: of the generator's call.
        searcher_prompt_tokens, searcher_completion_tokens: of all calls of the searcher; each counts its entire prompt.
        context_tokens: tokens of the documents in the generator's prompt.
        policy_version: version of the searcher that chose the documents, "v12"; empty without a searcher.
        seconds: wall-clock time from admission to the last token.
        provenance: the models, prompt, index and settings that made the answer.
        finish_reason: why the model that wrote the answer stopped; "length" if the answer is truncated.
        cut: ids of the documents that the model saw truncated, because the token budget did not hold them all.
        left_out: ids of the gathered documents that it did not see, because not even their beginning fit.
    """

    answer: str
    documents: tuple[Passage, ...]
    searches: int
    prompt_tokens: int
    completion_tokens: int
    context_tokens: int
    stop_reason: str
    trajectory: Trajectory | None = None
    policy_version: str = ""
    seconds: float = 0.0
    searcher_prompt_tokens: int = 0
    searcher_completion_tokens: int = 0
    provenance: Provenance = UNKNOWN_PROVENANCE
    finish_reason: str = "stop"
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def citations(self) -> tuple[str, ...]:
        """Ids of the passages given to the generator: nothing else can be cited."""
        return tuple(passage.id for passage in self.documents)


class AnsweringMethod(Protocol):
    """One way of answering."""

    name: str

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> FinalAnswer:
        """Answer ``question``, and pass each step to ``emit`` as it happens.

        Raises:
            searchrl.errors.ServiceError: a dependency failed; that never becomes an answer.
        """
        ...


async def answer_from(
    answerer: ContextAnswerer,
    question: Question,
    documents: Sequence[Passage],
    emit: Emit,
    *,
    options: AnswerOptions,
    searches: int = 0,
    retrieval: RecordedRetrieval | None = None,
    top_k: int = 0,
) -> FinalAnswer:
    """Let the generator answer from the documents that ``retrieval`` gathered; the last step of most methods."""

    async def emit_text(text: str) -> None:
        await emit(TextWritten(text))

    written = await answerer.write(question.generator_text, documents, emit_text, options.reply)
    return FinalAnswer(
        answer=written.answer,
        documents=written.documents,
        searches=searches,
        prompt_tokens=written.prompt_tokens,
        completion_tokens=written.completion_tokens,
        context_tokens=written.context_tokens,
        stop_reason="completed",
        finish_reason=written.finish_reason,
        cut=written.cut,
        left_out=written.left_out,
        provenance=with_retrieval(written.provenance, retrieval, top_k),
    )


def with_retrieval(provenance: Provenance, retrieval: RecordedRetrieval | None, top_k: int) -> Provenance:
    """Add the index, mode and ``top_k`` of the searches; without retrieval, return ``provenance`` unchanged."""
    if retrieval is None:
        return provenance
    return replace(provenance, index_generations=retrieval.index_generations, mode=retrieval.mode, top_k=top_k)
