"""Defines the generator's REST routes: one for each rpc, and OpenAI's chat completions, completions and models."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.errors import ServiceError
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from services.generator.engines.upstream_http import UpstreamReply
from services.generator.grpc_servicer import GeneratorServicer
from services.generator.openai_api.chat_completions import ChatCompletions, RawRequest
from services.generator.openai_api.chat_request import ChatRequest
from services.generator.openai_api.chat_response import openai_error_event

MIRRORS = (
    Mirror("POST", "/v1/answer", "Answer", pb.AnswerRequest, pb.AnswerEvent, streaming=True),
    Mirror(
        "POST",
        "/v1/answer_from_context",
        "AnswerFromContext",
        pb.AnswerFromContextRequest,
        pb.AnswerFromContextResponse,
    ),
    Mirror("POST", "/v1/judge", "Judge", pb.JudgeRequest, pb.JudgeResponse),
    Mirror("GET", "/v1/methods", "ListMethods", pb.ListMethodsRequest, pb.ListMethodsResponse),
)


def rest_router(servicer: GeneratorServicer) -> APIRouter:
    """Build the router with one route per rpc."""
    return mirror_router(servicer, MIRRORS, tag="generator")


def openai_router(chats: ChatCompletions) -> APIRouter:
    """Build the router of OpenAI's API. Bodies are read here, not by the framework, as they are forwarded unchanged."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/chat/completions", response_model=None, openapi_extra=_describe_body(_build_chat_schema()))
    async def chat_completions(request: Request) -> Response:
        raw = RawRequest.parse(await request.body())
        if raw.is_streamed:
            return await _stream_response(chats.stream(raw))
        return _build_response(await chats.complete(raw))

    @router.post("/v1/completions", response_model=None, openapi_extra=_describe_body(_TEXT_SCHEMA))
    async def completions(request: Request) -> Response:
        raw = RawRequest.parse(await request.body())
        if raw.is_streamed:
            return await _stream_response(chats.stream_text(raw))
        return _build_response(await chats.complete_text(raw))

    @router.get("/v1/models", response_model=None)
    async def models() -> Response:
        return _json({"object": "list", "data": [_describe_model(name) for name in chats.models()]})

    # path: the names of models contain slashes (searchrl/s3).
    @router.get("/v1/models/{model:path}", response_model=None)
    async def model(model: str) -> Response:
        chats.check_model(model)
        return _json(_describe_model(model))

    return router


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "searchrl"}


def _build_response(result: dict[str, Any] | UpstreamReply) -> Response:
    return _forward_reply(result) if isinstance(result, UpstreamReply) else _json(result)


async def _stream_response(events: AsyncGenerator[bytes | UpstreamReply]) -> Response:
    """Start the response only with its first event, so that an early failure has its HTTP status."""
    async with AsyncExitStack() as unsent:
        unsent.push_async_callback(events.aclose)
        first = await anext(events, b"")
        if isinstance(first, UpstreamReply):
            return _forward_reply(first)
        unsent.pop_all()  # from here on _yield_rest closes the generator
    return StreamingResponse(
        _yield_rest(first, events), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


async def _yield_rest(first: bytes, events: AsyncGenerator[bytes | UpstreamReply]) -> AsyncGenerator[bytes]:
    """Yield the events. Each item ends with a complete event, so an error is always an event of its own."""
    async with aclosing(events):
        yield first
        try:
            async for event in events:
                # An UpstreamReply can only be the first item, and is handled above.
                if isinstance(event, bytes):
                    yield event
        # The status 200 has been sent. An error event is what OpenAI's clients raise as an error; a connection that
        # just ends could be taken for a complete reply.
        except ServiceError as error:
            yield openai_error_event(error)


def _forward_reply(reply: UpstreamReply) -> Response:
    # Of the headers only the type: the others (connection, length, server) are about another connection.
    return Response(reply.content, reply.status, headers={"content-type": reply.content_type})


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _describe_body(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of the body and of the two kinds of response."""
    answers = {"200": {"content": {"application/json": {}, "text/event-stream": {}}}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": answers,
    }


def _build_chat_schema() -> dict[str, Any]:
    """Return the schema for models named ``searchrl/...``; for the engine's model its server decides."""
    schema = ChatRequest.model_json_schema()
    return _inline_references(schema, schema.pop("$defs", {}))


def _inline_references(value: Any, definitions: dict[str, Any]) -> Any:
    """Replace references in the schema, which would point to nothing in the service's OpenAPI document."""
    if isinstance(value, list):
        return [_inline_references(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inline_references(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline_references(item, definitions) for name, item in value.items()}


_TEXT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model"],
    "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}},
    "additionalProperties": True,
}
