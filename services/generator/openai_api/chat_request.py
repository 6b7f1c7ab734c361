"""Parses the chat completion requests that this service answers itself; others pass to the engine's server as is."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest
from services.generator.engines.base import ChatMessage
from services.generator.methods.base import AnswerOptions
from services.generator.prompting.context_answerer import ReplyOptions

# Fields of OpenAI's API that do not affect an answer (accepted), and fields that do unless they have one of these
# values (refused otherwise, since an answer that ignores them would be an answer to another request).
_WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)
_NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "top_p": (1, 1.0),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "stop": ([], ""),
    "tools": ([],),
    # Without tools these two choose nothing.
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
}


class TextPart(BaseModel):
    """Part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class SearchFields(BaseModel):
    """The request field ``searchrl``: how to search, for the models named ``searchrl/...``."""

    # Our own field: an unknown name in it is a spelling mistake, which would otherwise search with defaults.
    model_config = ConfigDict(extra="forbid")

    question_id: str = Field(default="", description="Shown in traces; has no other effect.")
    top_k: int | None = Field(default=None, description="Passages per search.")
    max_searches: int | None = Field(default=None, description="Searches of the searcher.")
    temperature: float | None = Field(default=None, description="Of the searcher; 0 is greedy.")
    filters: dict[str, str] = Field(default={}, description="Metadata values that every search requires.")


class StreamOptions(BaseModel):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a model named ``searchrl/...``, or for an engine in this process."""

    # Unknown fields are kept in ``model_extra``, where ``read`` refuses those that would change the answer.
    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: int | None = None
    searchrl: SearchFields | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> "ChatRequest":
        """Parse and validate a body.

        Raises:
            InvalidRequest: it does not have this form, or sets a field that is not supported.
        """
        try:
            request = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InvalidRequest(f"{place}: {first['msg']}") from error
        for name, value in (request.model_extra or {}).items():
            if value is not None and name not in _WITHOUT_EFFECT and value not in _NEUTRAL_VALUES.get(name, ()):
                raise InvalidRequest(f"{name}: the model '{request.model}' does not support it; leave it out")
        return request

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> int | None:
        """The requested limit of the reply in tokens."""
        # max_tokens is OpenAI's deprecated name of the other one.
        return self.max_completion_tokens or self.max_tokens

    def chat_messages(self) -> list[ChatMessage]:
        """Return the conversation for an engine."""
        return [ChatMessage(message.role, message.text) for message in self.messages]

    def as_question(self) -> tuple[Question, AnswerOptions]:
        """Return the last user message as a question; system messages and earlier turns go to the generator.

        Raises:
            InvalidRequest: the conversation does not end with a user message that has text.
        """
        *earlier, last = self.messages
        if last.role != "user" or not last.text.strip():
            raise InvalidRequest("messages: the last one must be the user's and hold the question")
        instructions = [message.text for message in earlier if message.role in ("system", "developer")]
        turns = [message for message in earlier if message.role in ("user", "assistant")]
        fields = self.searchrl or SearchFields()
        reply = ReplyOptions(
            instructions="\n\n".join(text for text in instructions if text.strip()),
            history=tuple(ChatMessage(message.role, message.text) for message in turns),
            max_tokens=self.token_limit,
            temperature=self.temperature,
        )
        options = AnswerOptions(fields.top_k, fields.max_searches, fields.temperature, self.seed, reply)
        # The request's ``temperature`` is the generator's; the searcher's is in ``searchrl``, because both run in one
        # request.
        return Question(fields.question_id, last.text.strip(), filters=fields.filters), options


def parse_body(content: bytes) -> dict[str, Any]:
    """Parse the JSON object of a request.

    Raises:
        InvalidRequest: it is no JSON object, names no model, or contains half a character (a lone surrogate).
    """
    try:
        # orjson refuses lone surrogates, which the standard library accepts and which could not be encoded for any
        # server.
        body = orjson.loads(content)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    if not isinstance(body.get("model"), str):
        raise InvalidRequest("model: a name is needed; GET /v1/models lists them")
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequest("stream: must be true or false")
    return body
