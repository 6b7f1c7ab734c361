"""Routes OpenAI requests to an answering method, to the engine's own server, or to an engine in this process."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from searchrl.domain.answer import Answer, TextWritten
from searchrl.errors import InvalidRequest, ServiceError
from services.generator.answer_service import Admission, AnswerService
from services.generator.engines.base import ChatEngine, ChatReply
from services.generator.engines.upstream_api import UpstreamApi
from services.generator.engines.upstream_http import UpstreamReply
from services.generator.openai_api.chat_request import ChatRequest, parse_body
from services.generator.openai_api.chat_response import (
    DONE,
    ChatResponse,
    ModelNotFound,
    describe_answer,
    describe_step,
    sum_usage,
)

METHOD_PREFIX = "searchrl/"
SEARCHRL_FIELD = "searchrl"
DEFAULT_MAX_TOKENS = 512
"""Limit of a reply of an engine in this process, if the request has none; a larger one holds its slot for longer."""


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request as it was received: ``content`` are its bytes, ``body`` is the parsed object."""

    content: bytes
    body: Mapping[str, Any]

    @classmethod
    def parse(cls, content: bytes) -> "RawRequest":
        """Raises:
        InvalidRequest: see ``parse_body``.
        """
        return cls(content, parse_body(content))

    @property
    def model(self) -> str:
        return self.body["model"]

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))

    def for_upstream(self) -> bytes:
        """Return the received bytes, without the field ``searchrl``, which a strict server would refuse."""
        # Byte for byte where possible: fields that are unknown here, and numbers as they are written, reach the server
        # as sent.
        if SEARCHRL_FIELD not in self.body:
            return self.content
        # Parsed again by the standard library, which keeps integers beyond 64 bits.
        try:
            body = json.loads(self.content)
            return json.dumps({name: value for name, value in body.items() if name != SEARCHRL_FIELD}).encode()
        except RecursionError as error:
            raise InvalidRequest("the body is nested too deep") from error


class ChatCompletions:
    """Routes by the model's name. A complete answer is a dict or the engine server's bytes; a stream is events.

    The caller sends the response headers only after the first item of a stream, so that an early failure still has its
    HTTP status.
    """

    def __init__(
        self, answers: AnswerService, engine: ChatEngine, upstream: UpstreamApi | None, admission: Admission
    ) -> None:
        self._answers = answers
        self._engine = engine
        self._upstream = upstream
        self._admission = admission

    def models(self) -> list[str]:
        """Return the engine's model, then every answering method."""
        return [self._engine.model, *(METHOD_PREFIX + method for method in self._answers.methods())]

    async def complete(self, raw: RawRequest) -> dict[str, Any] | UpstreamReply:
        """Return a complete chat completion.

        Raises:
            ServiceError: unknown model, refused, overloaded or failed.
        """
        self.check_model(raw.model)
        if self._upstream is not None and not raw.model.startswith(METHOD_PREFIX):
            with self._admission.slot():
                return await self._upstream.post("/chat/completions", raw.for_upstream())
        request = ChatRequest.read(raw.body)
        response = ChatResponse(request.model)
        if request.model.startswith(METHOD_PREFIX):
            question, options = request.as_question()
            steps = self._answers.answer(question, request.model.removeprefix(METHOD_PREFIX), options)
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, Answer):
                        return response.complete(
                            step.text, sum_usage(step), step.finish_reason, searchrl=describe_answer(step)
                        )
            raise ServiceError("the answer ended without its final step")
        with self._admission.slot():
            reply = await self._engine.chat(
                request.chat_messages(), max_tokens=_max_tokens(request), temperature=request.temperature or 0.0
            )
        return response.complete(reply.text, sum_usage(reply), reply.finish_reason)

    async def stream(self, raw: RawRequest) -> AsyncGenerator[bytes | UpstreamReply]:
        """Yield a chat completion as events; raises like ``complete`` before the first one."""
        self.check_model(raw.model)
        if raw.model.startswith(METHOD_PREFIX):
            events = self._search_events(ChatRequest.read(raw.body))
        elif self._upstream is None:
            events = self._engine_events(ChatRequest.read(raw.body))
        else:
            events = self._upstream_events(self._upstream, "/chat/completions", raw)
        async with aclosing(events):
            async for event in events:
                yield event

    async def complete_text(self, raw: RawRequest) -> UpstreamReply:
        """Forward a text completion to the engine's own server."""
        upstream = self._text_upstream(raw.model)
        with self._admission.slot():
            return await upstream.post("/completions", raw.for_upstream())

    async def stream_text(self, raw: RawRequest) -> AsyncGenerator[bytes | UpstreamReply]:
        """Forward a streamed text completion."""
        async with aclosing(self._upstream_events(self._text_upstream(raw.model), "/completions", raw)) as events:
            async for event in events:
                yield event

    def check_model(self, model: str) -> None:
        """Raises:
        ModelNotFound: no model of that name is served.
        """
        if model not in self.models():
            raise ModelNotFound(f"the model '{model}' does not exist; served: {', '.join(self.models())}")

    async def _search_events(self, request: ChatRequest) -> AsyncGenerator[bytes]:
        response = ChatResponse(request.model)
        question, options = request.as_question()
        steps = self._answers.answer(question, request.model.removeprefix(METHOD_PREFIX), options)
        # OpenAI sends the role in the first chunk only; here that may be a step, a text or the end.
        role: dict[str, str] = {"role": "assistant", "content": ""}
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Answer):
                    yield response.chunk(role, step.finish_reason, searchrl=describe_answer(step))
                    if request.wants_usage:
                        yield response.usage_chunk(sum_usage(step))
                elif isinstance(step, TextWritten):
                    yield response.chunk({**role, "content": step.text})
                else:
                    yield response.chunk(role, searchrl=describe_step(step))
                role = {}
        yield DONE

    async def _engine_events(self, request: ChatRequest) -> AsyncGenerator[bytes]:
        response = ChatResponse(request.model)
        role: dict[str, str] = {"role": "assistant", "content": ""}
        with self._admission.slot():
            pieces = self._engine.stream(
                request.chat_messages(), max_tokens=_max_tokens(request), temperature=request.temperature or 0.0
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, ChatReply):
                        yield response.chunk(role, piece.finish_reason)
                        if request.wants_usage:
                            yield response.usage_chunk(sum_usage(piece))
                    else:
                        yield response.chunk({**role, "content": piece})
                    role = {}
        yield DONE

    async def _upstream_events(
        self, upstream: UpstreamApi, path: str, raw: RawRequest
    ) -> AsyncGenerator[bytes | UpstreamReply]:
        with self._admission.slot():
            async with aclosing(upstream.stream(path, raw.for_upstream())) as parts:
                async for part in parts:
                    yield part

    def _text_upstream(self, model: str) -> UpstreamApi:
        self.check_model(model)
        if self._upstream is None or model.startswith(METHOD_PREFIX):
            raise InvalidRequest(f"the model '{model}' takes chat completions only")
        return self._upstream


def _max_tokens(request: ChatRequest) -> int:
    return request.token_limit or DEFAULT_MAX_TOKENS
