"""What is an answering method? It gathers documents for a question, tells each step, and ends with an answer."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from searchrl.agent.search_loop import LoopEvent
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from services.generator.prompting.context_answerer import ContextAnswerer


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a caller may change per question; None takes the method's own default."""

    top_k: int | None = None
    max_searches: int | None = None
    temperature: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TextWritten:
    """A piece of the answer, as the generator writes it."""

    text: str


Step = LoopEvent | TextWritten
Emit = Callable[[Step], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The end of an answer.

    Attributes:
        documents: the passages the generator was given, in order.
        searches: queries that reached the retriever after the initial one.
        context_tokens: tokens of the documents in the generator's prompt.
        policy_version: version of the searcher that chose the documents, "v12"; empty without a searcher.
        seconds: wall-clock time from admission to the last token.
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

    @property
    def citations(self) -> tuple[str, ...]:
        """Ids of the passages given to the generator: nothing else can be cited."""
        return tuple(passage.id for passage in self.documents)


class AnsweringMethod(Protocol):
    """One way of answering."""

    name: str

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> FinalAnswer:
        """Answer ``question``, telling each step through ``emit`` as it happens.

        Raises:
            searchrl.errors.ServiceError: a dependency failed; never an answer in its place.
        """
        ...


async def answer_from(
    answerer: ContextAnswerer,
    question: Question,
    documents: Sequence[Passage],
    emit: Emit,
    *,
    searches: int = 0,
    stop_reason: str = "completed",
    trajectory: Trajectory | None = None,
    policy_version: str = "",
) -> FinalAnswer:
    """The last step that all methods share: the generator answers from the documents gathered."""

    async def emit_text(text: str) -> None:
        await emit(TextWritten(text))

    written = await answerer.write(question.generator_text, documents, emit_text)
    return FinalAnswer(
        answer=written.answer,
        documents=written.documents,
        searches=searches,
        prompt_tokens=written.prompt_tokens,
        completion_tokens=written.completion_tokens,
        context_tokens=written.context_tokens,
        stop_reason=stop_reason,
        trajectory=trajectory,
        policy_version=policy_version,
    )
