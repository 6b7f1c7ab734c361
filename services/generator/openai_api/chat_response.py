"""Writes replies and answers as chat completions, complete or in chunks, and errors in OpenAI's form."""

import time
import uuid
from typing import Any

import orjson

from searchrl.domain.answer import Answer
from searchrl.errors import ErrorKind, NotFound, ServiceError
from searchrl.platform.json_text import without_lone_surrogates
from searchrl.platform.request_context import request_id
from searchrl.platform.server.answer_encoder import message_to_json
from searchrl.wire.answer_codec import answer_to_wire, step_to_wire
from services.generator.engines.base import ChatReply
from services.generator.methods.base import Step

DONE = b"data: [DONE]\n\n"
# OpenAI's clients choose the class of the exception by the status; type and code are for programs that read the body.
_TYPES = {
    ErrorKind.INVALID: "invalid_request_error",
    ErrorKind.TOO_LARGE: "invalid_request_error",
    ErrorKind.NOT_FOUND: "invalid_request_error",
    ErrorKind.UNAUTHENTICATED: "authentication_error",
    ErrorKind.FORBIDDEN: "permission_error",
    ErrorKind.OVERLOADED: "rate_limit_error",
}
_CODES = {ErrorKind.OVERLOADED: "rate_limit_exceeded", ErrorKind.UNAUTHENTICATED: "invalid_api_key"}


class ChatResponse:
    """One response; all its chunks have the same id, time and model."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def complete(
        self, text: str, usage: dict[str, int], finish_reason: str = "stop", **extra: object
    ) -> dict[str, Any]:
        """Return the complete response."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage, **extra}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None, **extra: object) -> bytes:
        """Return one server-sent event."""
        # finish_reason is null in every chunk but the last, as in OpenAI's own streams.
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event({"choices": [choice], **extra})

    def usage_chunk(self, usage: dict[str, int]) -> bytes:
        """Return the event that has only the usage."""
        return self._event({"choices": [], "usage": usage})

    def _event(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps({**self._head("chat.completion.chunk"), **fields}) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def sum_usage(reply: ChatReply | Answer) -> dict[str, int]:
    """Return the tokens of every model call: the generator's, and the searcher's if there is one."""
    if isinstance(reply, Answer):
        prompt = reply.usage.prompt_tokens + reply.usage.searcher_prompt_tokens
        completion = reply.usage.completion_tokens + reply.usage.searcher_completion_tokens
    else:
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def describe_step(step: Step) -> dict[str, Any]:
    """Return the field ``searchrl`` of a chunk: one step, as the REST API writes it."""
    return message_to_json(step_to_wire(step))


def describe_answer(answer: Answer) -> dict[str, Any]:
    """Return the field ``searchrl`` of a finished answer: everything but its text and the generator's tokens."""
    # The text is in ``choices`` and the generator's tokens in ``usage``; the trajectory would multiply the size of the
    # body.
    fields = message_to_json(answer_to_wire(answer, with_trajectory=False))
    return {
        name: value for name, value in fields.items() if name not in {"answer", "prompt_tokens", "completion_tokens"}
    }


class ModelNotFound(NotFound):
    """No model of that name is served."""


def openai_error(error: ServiceError) -> dict[str, Any]:
    """Return the error body; ``kind`` and ``request_id`` are the fields of every other error of the service."""
    missing = isinstance(error, ModelNotFound)
    return {
        "error": {
            "message": without_lone_surrogates(str(error)),
            "type": _TYPES.get(error.kind, "server_error"),
            "param": "model" if missing else None,
            "code": "model_not_found" if missing else _CODES.get(error.kind),
            "kind": error.kind.value,
            "request_id": request_id(),
        }
    }


def openai_error_event(error: ServiceError) -> bytes:
    """Return the error as an event of a stream that has started."""
    return b"data: " + orjson.dumps(openai_error(error)) + b"\n\n"
