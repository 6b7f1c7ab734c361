"""What does a chat completion request ask for?"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest
from services.generator.engines.chat_engine import ChatMessage
from services.generator.methods.answering_method import AnswerOptions


class TextPart(BaseModel):
    """Part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; further fields pass."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class SearchFields(BaseModel):
    """Our own request field ``searchrl``: how to search, for the models named ``searchrl/...``."""

    model_config = ConfigDict(extra="forbid")

    question_id: str = Field(default="", description="Comes back in traces; no meaning otherwise.")
    top_k: int | None = Field(default=None, description="Passages per search.")
    max_searches: int | None = Field(default=None, description="Searches of the searcher.")
    temperature: float | None = Field(default=None, description="Of the searcher; 0 is greedy.")
    filters: dict[str, str] = Field(default={}, description="Metadata equalities that every search carries.")


class StreamOptions(BaseModel):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields this service reads; all others pass through to an engine that knows them."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: int | None = None
    seed: int | None = None
    searchrl: SearchFields | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def chat_messages(self) -> list[ChatMessage]:
        """The conversation for an engine."""
        return [ChatMessage(message.role, message.text) for message in self.messages]

    def as_question(self) -> tuple[Question, AnswerOptions]:
        """The last user message as a question.

        Raises:
            InvalidRequest: there is none, or more than one reply is asked for.
        """
        if self.n not in (None, 1):
            raise InvalidRequest("n: models that search give one reply")
        text = next((message.text for message in reversed(self.messages) if message.role == "user"), "")
        if not text.strip():
            raise InvalidRequest("messages: the last user message must hold the question")
        fields = self.searchrl or SearchFields()
        options = AnswerOptions(fields.top_k, fields.max_searches, fields.temperature, self.seed)
        return Question(fields.question_id, text.strip(), filters=fields.filters), options

    def passed_on(self) -> dict[str, Any]:
        """The body as it came, for the engine's own server."""
        return self.model_dump(exclude_unset=True, exclude={"searchrl"})
