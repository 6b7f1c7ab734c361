"""Answers a question from given passages with the frozen generator."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveInt

from searchrl.domain.answer import Answer, Provenance, TextWritten, Usage
from searchrl.domain.passage import Passage
from searchrl.errors import InvalidRequest, Unavailable
from searchrl.platform.settings import Section
from searchrl.platform.telemetry.tracing import Span, span
from services.generator.engines.base import ChatEngine, ChatMessage, ChatReply
from services.generator.prompting.context_template import ContextMessage, ContextTemplate


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What a caller may change about the generator's call.

    Attributes:
        instructions: added to the system message.
        history: turns of the user and the assistant before the question.
        max_tokens, temperature: None: those of the settings.
    """

    instructions: str = ""
    history: tuple[ChatMessage, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None

    def conversation(self, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """Return ``messages``, which end with the question, with instructions and history inserted before it."""
        # The caller's instructions follow ours in one message: many chat templates accept a single system message only.
        *before, question = messages
        if self.instructions and before and before[0].role == "system":
            before[0] = replace(before[0], content=f"{before[0].content}\n\n{self.instructions}")
        elif self.instructions:
            before.insert(0, ChatMessage("system", self.instructions))
        return (*before, *self.history, question)


DEFAULT_REPLY = ReplyOptions()

# An example: a context of 8192 tokens - 128 for the answer - 512 = 7552 tokens for documents, of which
# context.max_tokens takes 6000. A request with a max_tokens of 4096 leaves 3584 of them.
PROMPT_RESERVE_TOKENS = 512
"""Reserved for the question and our instruction if the model's context length is known."""


class ContextSettings(Section):
    """What the generator reads and writes."""

    top_k: PositiveInt = Field(default=3, description="Passages per search of rag and the controls.")
    # A dozen passages of 100 words take about 2,000 tokens, so that the budget rarely cuts anything, and a prompt with
    # it fits a context of 8,192 tokens.
    max_tokens: PositiveInt = Field(default=6000, description="Budget of the documents in one prompt.")
    # An answer is a name, a number or a short phrase (``INSTRUCTION``).
    max_answer_tokens: PositiveInt = Field(default=128, description="Longest answer.")
    temperature: NonNegativeFloat = Field(default=0.0, description="Sampling temperature of the generator.")
    template_file: Path | None = Field(
        default=None,
        description="{documents} only: the system message; with {question}: the user message; if absent, built-in.",
    )
    tokenizer_dir: Path | None = Field(
        default=None, description="Model folder whose tokenizer counts the budget; if absent, estimated from words."
    )


class ContextAnswerer:
    """Makes one call of the generator per question, for rewards and as the last step of answering methods."""

    def __init__(
        self,
        engine: ChatEngine,
        template: ContextTemplate,
        settings: ContextSettings,
        *,
        context_length: int | None = None,
    ) -> None:
        """Build an answerer; ``context_length`` is that of the model, prompt and reply together, None if unknown."""
        self._engine = engine
        self._template = template
        self._settings = settings
        self._context_length = context_length

    def document_budget(self, options: ReplyOptions = DEFAULT_REPLY) -> int:
        """Return the tokens that documents may take beside the reply and the conversation that the caller wants."""
        budget = self._template.max_context_tokens
        if self._context_length is None:
            return budget
        conversation = (options.instructions, *(message.content for message in options.history))
        reserved = PROMPT_RESERVE_TOKENS + self._max_tokens(options) + self._template.count_tokens(conversation)
        return max(0, min(budget, self._context_length - reserved))

    async def answer(self, question: str, passages: Sequence[Passage]) -> Answer:
        """Return the complete answer."""
        with span("generate") as generating:
            message = self._render(question, passages)
            reply = await self._engine.chat(
                message.messages, max_tokens=self._settings.max_answer_tokens, temperature=self._settings.temperature
            )
            return self._build_answer(reply, message, generating)

    async def write(
        self,
        question: str,
        passages: Sequence[Passage],
        emit: Callable[[TextWritten], Awaitable[None]],
        options: ReplyOptions = DEFAULT_REPLY,
    ) -> Answer:
        """Return the answer, and pass each piece of its text to ``emit`` as it is written.

        Raises:
            InvalidRequest: the reply and the conversation that are asked for leave no room for documents.
            ServiceError: the engine refused or failed.
        """
        with span("generate") as generating:
            message = self._render(question, passages, options)
            pieces = self._engine.stream(
                options.conversation(message.messages),
                max_tokens=self._max_tokens(options),
                temperature=self._settings.temperature if options.temperature is None else options.temperature,
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, ChatReply):
                        return self._build_answer(piece, message, generating, options)
                    await emit(TextWritten(piece))
            raise Unavailable("the engine's stream ended before its reply was complete")

    def _render(
        self, question: str, passages: Sequence[Passage], options: ReplyOptions = DEFAULT_REPLY
    ) -> ContextMessage:
        budget = self.document_budget(options)
        if passages and not budget:
            raise InvalidRequest(
                "max_tokens and the earlier messages leave no room for documents in the model's context of "
                f"{self._context_length} tokens"
            )
        return self._template.render(question, passages, budget)

    def _max_tokens(self, options: ReplyOptions) -> int:
        return options.max_tokens or self._settings.max_answer_tokens

    def _build_answer(
        self, reply: ChatReply, message: ContextMessage, generating: Span, options: ReplyOptions = DEFAULT_REPLY
    ) -> Answer:
        generating.set_attributes(
            {
                "searchrl.documents": len(message.documents),
                "searchrl.documents_cut": len(message.cut),
                "searchrl.documents_left_out": len(message.left_out),
                "searchrl.context_tokens": message.context_tokens,
            }
        )
        return Answer(
            text=reply.text.strip(),
            documents=tuple(passage.id for passage in message.documents),
            passages={passage.id: passage for passage in message.documents},
            cut=message.cut,
            left_out=message.left_out,
            finish_reason=reply.finish_reason,
            usage=Usage(reply.prompt_tokens, reply.completion_tokens, message.context_tokens),
            provenance=Provenance(
                # As the server names it: an alias that is moved to another model shows in the provenance.
                generator_model=reply.model or self._engine.model,
                template_hash=self._template.version,
                max_context_tokens=message.max_context_tokens,
                max_answer_tokens=self._max_tokens(options),
                temperature=self._settings.temperature if options.temperature is None else options.temperature,
            ),
        )
