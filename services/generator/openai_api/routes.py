"""Defines the OpenAI routes: chat completions, completions and models."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from searchrl.errors import ServiceError
from services.generator.engines.upstream_http import UpstreamReply
from services.generator.openai_api.chat_request import ChatRequest
from services.generator.openai_api.error_shape import openai_error_event
from services.generator.openai_api.front_door import FrontDoor, RawRequest


def openai_router(front_door: FrontDoor) -> APIRouter:
    """Build the router. Bodies are read here, not by the framework, because they are forwarded unchanged."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/chat/completions", response_model=None, openapi_extra=_body_of(_chat_schema()))
    async def chat_completions(request: Request) -> Response:
        raw = RawRequest.of(await request.body())
        if raw.is_streamed:
            return await _streamed(front_door.stream(raw))
        return _whole(await front_door.complete(raw))

    @router.post("/v1/completions", response_model=None, openapi_extra=_body_of(_TEXT_SCHEMA))
    async def completions(request: Request) -> Response:
        raw = RawRequest.of(await request.body())
        if raw.is_streamed:
            return await _streamed(front_door.stream_text(raw))
        return _whole(await front_door.complete_text(raw))

    @router.get("/v1/models", response_model=None)
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(name) for name in front_door.models()]})

    @router.get("/v1/models/{model:path}", response_model=None)
    async def model(model: str) -> Response:
        front_door.check_model(model)
        return _json(_model(model))

    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "searchrl"}


def _whole(result: dict[str, Any] | UpstreamReply) -> Response:
    return _passed_through(result) if isinstance(result, UpstreamReply) else _json(result)


async def _streamed(events: AsyncGenerator[bytes | UpstreamReply]) -> Response:
    """Start the response only with its first event, so that an early failure has its HTTP status."""
    async with AsyncExitStack() as unsent:
        unsent.push_async_callback(events.aclose)
        first = await anext(events, b"")
        if isinstance(first, UpstreamReply):
            return _passed_through(first)
        unsent.pop_all()  # from here on _rest closes the generator
    return StreamingResponse(
        _rest(first, events), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


async def _rest(first: bytes, events: AsyncGenerator[bytes | UpstreamReply]) -> AsyncGenerator[bytes]:
    """Yield the events. Each item ends with a complete event, so an error is always an event of its own."""
    async with aclosing(events):
        yield first
        try:
            async for event in events:
                if isinstance(event, bytes):
                    yield event
        except ServiceError as error:
            yield openai_error_event(error)


def _passed_through(reply: UpstreamReply) -> Response:
    return Response(reply.content, reply.status, headers={"content-type": reply.content_type})


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _body_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of the body and of the two kinds of response."""
    answers = {"200": {"content": {"application/json": {}, "text/event-stream": {}}}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": answers,
    }


def _chat_schema() -> dict[str, Any]:
    """Return the schema for models named ``searchrl/...``; for the engine's model its server decides."""
    schema = ChatRequest.model_json_schema()
    return _inlined(schema, schema.pop("$defs", {}))


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """Replace references in the schema, which would point to nothing in the service's OpenAPI document."""
    if isinstance(value, list):
        return [_inlined(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(item, definitions) for name, item in value.items()}


_TEXT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model"],
    "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}},
    "additionalProperties": True,
}
