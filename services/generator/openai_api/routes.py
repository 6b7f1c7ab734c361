"""Which OpenAI paths are served?"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import StreamingResponse

from searchrl.errors import ServiceError
from services.generator.engines.upstream_api import UpstreamReply
from services.generator.openai_api.chat_request import ChatRequest
from services.generator.openai_api.error_shape import OpenAIRoute, openai_error_event
from services.generator.openai_api.front_door import FrontDoor

Result = TypeVar("Result")

CLIENT_CLOSED = 499


def openai_router(front_door: FrontDoor) -> APIRouter:
    """Chat completions, completions and models."""
    router = APIRouter(tags=["openai"], route_class=OpenAIRoute)

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        if body.stream:
            return await _streamed(request, front_door.stream(body))
        return await _whole(request, front_door.complete(body))

    @router.post("/v1/completions", response_model=None)
    async def completions(request: Request, body: dict[str, Any] = Body()) -> Response:
        if body.get("stream"):
            return await _streamed(request, front_door.stream_text(body))
        return await _whole(request, front_door.complete_text(body))

    @router.get("/v1/models", response_model=None)
    async def models() -> Response:
        rows = [{"id": id, "object": "model", "created": 0, "owned_by": "searchrl"} for id in front_door.models()]
        return _json({"object": "list", "data": rows})

    return router


async def _whole(request: Request, work: Coroutine[Any, Any, dict[str, Any] | UpstreamReply]) -> Response:
    result = await _while_connected(request, work)
    if result is None:
        return Response(status_code=CLIENT_CLOSED)
    return _passed_through(result) if isinstance(result, UpstreamReply) else _json(result)


async def _streamed(request: Request, events: AsyncGenerator[bytes | UpstreamReply]) -> Response:
    """Begin the answer only with its first event, so that an early failure has its status."""
    async with AsyncExitStack() as unsent:
        unsent.push_async_callback(events.aclose)
        first = await _while_connected(request, _next(events))
        if first is None:
            return Response(status_code=CLIENT_CLOSED)
        if isinstance(first, UpstreamReply):
            return _passed_through(first)
        unsent.pop_all()
    return StreamingResponse(
        _rest(first, events), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


async def _rest(first: bytes, events: AsyncGenerator[bytes | UpstreamReply]) -> AsyncGenerator[bytes]:
    """Starlette cancels this when the client goes away."""
    async with aclosing(events):
        yield first
        try:
            async for event in events:
                if isinstance(event, bytes):
                    yield event
        except ServiceError as error:
            yield openai_error_event(error)


async def _next(events: AsyncGenerator[bytes | UpstreamReply]) -> bytes | UpstreamReply | None:
    return await anext(events, None)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Await ``work``; when the client goes away, cancel it and return None."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _passed_through(reply: UpstreamReply) -> Response:
    return Response(reply.content, reply.status, media_type=reply.content_type)


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
