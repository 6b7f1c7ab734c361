"""What did an OpenAI-compatible server answer: a reply, pieces of one, or a failure?"""

import httpx
import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice

from searchrl.errors import ServiceError, Unavailable
from services.generator.engines.chat_engine import ChatReply
from services.generator.engines.upstream_status import status_failure


def reply_of(completion: object) -> ChatReply:
    """Read a completion.

    Raises:
        Unavailable: it is none, or it is empty although the model wrote no token. An empty text is an answer only if
            the model ended its turn at once, which its usage shows.
    """
    # The client library fills its classes without checking, so every step is looked at.
    choice = _first(completion.choices) if isinstance(completion, ChatCompletion) else None
    if not isinstance(completion, ChatCompletion) or not isinstance(choice, Choice):
        raise Unavailable("the engine's reply is not a chat completion", None)
    text = choice.message.content if isinstance(choice.message, ChatCompletionMessage) else None
    if not isinstance(text, str):
        raise Unavailable("the engine's reply has no text", None)
    return _checked(text, completion.model, completion.usage, choice.finish_reason)


class StreamedReply:
    """Collects the chunks of one reply."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._parts: list[str] = []
        self._usage: CompletionUsage | None = None
        self._finish_reason = ""

    def add(self, chunk: ChatCompletionChunk) -> str:
        """Take a chunk; return the text it adds."""
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        choice = _first(chunk.choices)
        if not isinstance(choice, ChunkChoice):
            return ""
        self._finish_reason = choice.finish_reason or self._finish_reason
        text = choice.delta.content or ""
        self._parts.append(text)
        return text

    def finish(self) -> ChatReply:
        """The whole reply.

        Raises:
            Unavailable: the stream ended in the middle.
        """
        if not self._finish_reason:
            raise Unavailable("the engine's stream ended in the middle of its reply", None)
        return _checked("".join(self._parts), self._model, self._usage, self._finish_reason)


def _checked(text: str, model: str | None, usage: CompletionUsage | None, finish_reason: str | None) -> ChatReply:
    known = usage if isinstance(usage, CompletionUsage) else None
    written = known.completion_tokens if known else 0
    if not text and not written:
        raise Unavailable("the engine's reply is empty", None)
    return ChatReply(text, model or "", known.prompt_tokens if known else 0, written, finish_reason or "stop")


def _first(choices: object) -> object:
    return choices[0] if isinstance(choices, list) and choices else None


def engine_failure(error: Exception) -> ServiceError:
    """Translate what the client library raised; only ``Unavailable`` and ``Overloaded`` are worth another attempt."""
    if isinstance(error, openai.APITimeoutError):
        return Unavailable("the engine did not answer in time", None)
    if isinstance(error, openai.APIStatusError):
        return status_failure(error.status_code, str(error.message), error.response.headers.get("retry-after"))
    if isinstance(error, httpx.HTTPError | openai.APIConnectionError):
        return Unavailable(f"the engine cannot be reached: {error.__cause__ or error}", None)
    return Unavailable(f"the engine's reply cannot be read: {type(error).__name__}", None)
