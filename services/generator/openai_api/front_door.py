"""Who answers an OpenAI request: an answering method, the engine's own server, or an engine in this process?"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from searchrl.errors import InvalidRequest, ServiceError
from services.generator.admission import Admission
from services.generator.answer_service import AnswerService
from services.generator.engines.chat_engine import ChatEngine, ChatReply
from services.generator.engines.upstream_api import UpstreamApi, UpstreamReply
from services.generator.methods.answering_method import FinalAnswer, TextWritten
from services.generator.openai_api.chat_request import ChatRequest
from services.generator.openai_api.chat_response import DONE, ChatResponse, search_result, search_step, usage_of
from services.generator.openai_api.error_shape import ModelNotFound, openai_error_event

PREFIX = "searchrl/"
DEFAULT_MAX_TOKENS = 512


class FrontDoor:
    """Routes by the model's name. A whole answer is a dict or the engine's own bytes; a stream is events.

    The first item of a stream comes before anything is sent, so that an early failure has its status.
    """

    def __init__(
        self, answers: AnswerService, engine: ChatEngine, upstream: UpstreamApi | None, admission: Admission
    ) -> None:
        self._answers = answers
        self._engine = engine
        self._upstream = upstream
        self._admission = admission

    def models(self) -> list[str]:
        """The engine's model, then every answering method."""
        return [self._engine.model, *(PREFIX + method for method in self._answers.methods())]

    async def complete(self, request: ChatRequest) -> dict[str, Any] | UpstreamReply:
        """Answer a chat completion as a whole.

        Raises:
            ServiceError: unknown model, refused, overloaded or failed.
        """
        response = ChatResponse(request.model)
        if request.model.startswith(PREFIX):
            question, options = request.as_question()
            steps = self._answers.answer(question, self._method(request.model), options)
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, FinalAnswer):
                        return response.whole(step.answer, usage_of(step), searchrl=search_result(step))
            raise ServiceError("the answer ended without its final step")
        self._check_engine_model(request.model)
        with self._admission.slot():
            if self._upstream is not None:
                return await self._upstream.post("/chat/completions", request.passed_on())
            reply = await self._engine.chat(
                request.chat_messages(), max_tokens=_max_tokens(request), temperature=request.temperature or 0.0
            )
        return response.whole(reply.text, usage_of(reply), reply.finish_reason)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[bytes | UpstreamReply]:
        """Answer a chat completion as events; raises like ``complete`` before the first one."""
        if request.model.startswith(PREFIX):
            events = self._search_events(request)
        else:
            self._check_engine_model(request.model)
            events = self._engine_events(request) if self._upstream is None else self._upstream_events(request)
        begun = False
        async with aclosing(events):
            try:
                async for event in events:
                    begun = True
                    yield event
            except ServiceError as error:
                if not begun:
                    raise
                yield openai_error_event(error)

    async def complete_text(self, body: Mapping[str, Any]) -> UpstreamReply:
        """Pass a text completion on to the engine's own server."""
        with self._admission.slot():
            return await self._text_upstream(body).post("/completions", body)

    async def stream_text(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes | UpstreamReply]:
        """Pass a streamed text completion on."""
        upstream = self._text_upstream(body)
        with self._admission.slot():
            async with aclosing(upstream.stream("/completions", body)) as parts:
                async for part in parts:
                    yield part

    async def _search_events(self, request: ChatRequest) -> AsyncGenerator[bytes]:
        response = ChatResponse(request.model)
        question, options = request.as_question()
        steps = self._answers.answer(question, self._method(request.model), options)
        role: dict[str, str] = {"role": "assistant", "content": ""}
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, FinalAnswer):
                    yield response.chunk(role, "stop", searchrl=search_result(step))
                    if request.wants_usage:
                        yield response.usage_chunk(usage_of(step))
                elif isinstance(step, TextWritten):
                    yield response.chunk({**role, "content": step.text})
                else:
                    yield response.chunk(role, searchrl=search_step(step))
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
                            yield response.usage_chunk(usage_of(piece))
                    else:
                        yield response.chunk({**role, "content": piece})
                    role = {}
        yield DONE

    async def _upstream_events(self, request: ChatRequest) -> AsyncGenerator[bytes | UpstreamReply]:
        assert self._upstream is not None
        with self._admission.slot():
            async with aclosing(self._upstream.stream("/chat/completions", request.passed_on())) as parts:
                async for part in parts:
                    yield part

    def _method(self, model: str) -> str:
        method = model.removeprefix(PREFIX)
        if method not in self._answers.methods():
            raise ModelNotFound(f"the model '{model}' does not exist; served: {', '.join(self.models())}")
        return method

    def _check_engine_model(self, model: str) -> None:
        if model != self._engine.model:
            raise ModelNotFound(f"the model '{model}' does not exist; served: {', '.join(self.models())}")

    def _text_upstream(self, body: Mapping[str, Any]) -> UpstreamApi:
        model = str(body.get("model", ""))
        if not model.startswith(PREFIX):
            self._check_engine_model(model)
        if self._upstream is None or model.startswith(PREFIX):
            raise InvalidRequest(f"the model '{model}' takes chat completions only")
        return self._upstream


def _max_tokens(request: ChatRequest) -> int:
    return request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS
