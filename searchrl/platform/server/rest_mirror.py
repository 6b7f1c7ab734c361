"""Derives a REST route from each rpc: JSON in, a call of the servicer's method, JSON or server-sent events out."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from searchrl.errors import InvalidRequest, ServiceError
from searchrl.platform.json_text import refuse_lone_surrogates, without_lone_surrogates
from searchrl.platform.request_context import lift_default_deadline
from searchrl.platform.server.answer_encoder import encode_message, message_to_bytes
from searchrl.platform.server.http_middleware import error_body
from searchrl.platform.server.message_models import model_of


class Mirror(NamedTuple):
    """One rpc and its REST route. Fields of a GET come from the path and the query string.

    Attributes:
        unlimited: the call may take longer than a request's default deadline.
        batch: name of a field that lists texts which succeed or fail independently. A lone surrogate in one of them is
            replaced, because no message can carry it; in any other field it refuses the request.
    """

    verb: str
    path: str
    method: str
    request: type[Message]
    response: type[Message]
    streaming: bool = False
    unlimited: bool = False
    batch: str = ""


def mirror_router(servicer: object, mirrors: Sequence[Mirror], tag: str) -> APIRouter:
    """Build REST routes that call ``servicer``'s rpc methods, so that both transports behave the same."""
    router = APIRouter(tags=[tag])
    for mirror in mirrors:
        _add(router, servicer, mirror)
    return router


def _add(router: APIRouter, servicer: object, mirror: Mirror) -> None:
    call = getattr(servicer, mirror.method)
    body_model = model_of(mirror.request)

    async def answer(request: Request, fields: dict[str, Any]) -> Response:
        # The path wins over a field of the same name in the body, so that the request acts on what its URL names.
        message = _parse(mirror, {**fields, **request.path_params})
        if mirror.unlimited:
            lift_default_deadline()
        if mirror.streaming:
            # No gRPC context: servicers do not use it, since the interceptor, or here the middleware, has done that
            # work.
            return await _stream(call(message, None))
        return Response(await encode_message(await call(message, None)), media_type="application/json")

    async def with_body(request: Request, body: body_model) -> Response:  # pyright: ignore[reportInvalidTypeForm]
        # Only what was sent: a default filled in here would look to the service like the caller's choice.
        return await answer(request, body.model_dump(exclude_unset=True, exclude_none=True))

    async def with_path(request: Request, body: body_model | None = None) -> Response:  # pyright: ignore[reportInvalidTypeForm]
        return await answer(request, {} if body is None else body.model_dump(exclude_unset=True, exclude_none=True))

    # Values stay texts: ParseDict accepts numbers as text, since JSON has to write 64-bit integers so.
    async def with_query(request: Request) -> Response:
        return await answer(request, _query_fields(mirror.request, request.query_params))

    documented: dict[int | str, dict[str, Any]] = {200: {"model": model_of(mirror.response)}}
    if mirror.streaming:
        documented = {200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}}
    router.add_api_route(
        mirror.path,
        with_query if mirror.verb == "GET" else with_path if _is_all_in_path(mirror) else with_body,
        methods=[mirror.verb],
        name=mirror.method,
        operation_id=mirror.method,
        responses=documented,
        response_model=None,
        openapi_extra=_parameters(mirror),
    )


def _is_all_in_path(mirror: Mirror) -> bool:
    """Whether the path names every field, so that the body is optional."""
    return all(f"{{{field.name}}}" in mirror.path for field in mirror.request.DESCRIPTOR.fields)


def _parse(mirror: Mirror, fields: dict[str, Any]) -> Message:
    if mirror.batch in fields:
        fields[mirror.batch] = [without_lone_surrogates(text) for text in fields[mirror.batch]]
    refuse_lone_surrogates(fields)
    try:
        return ParseDict(fields, mirror.request())
    except ParseError as error:
        raise InvalidRequest(str(error)) from error


def _query_fields(kind: type[Message], query: Mapping[str, str]) -> dict[str, Any]:
    fields = kind.DESCRIPTOR.fields_by_name
    unknown = [name for name in query if name not in fields]
    if unknown:
        raise InvalidRequest(f"unknown query parameter '{unknown[0]}'; known: {', '.join(fields)}")
    return dict(query)


def _parameters(mirror: Mirror) -> dict[str, Any] | None:
    fields = mirror.request.DESCRIPTOR.fields_by_name
    properties = model_of(mirror.request).model_json_schema()["properties"]
    in_path = [name for name in fields if f"{{{name}}}" in mirror.path]
    rows = [
        {"name": name, "in": "path", "required": True, "schema": {**properties[name], "minLength": 1}}
        for name in in_path
    ]
    if mirror.verb == "GET":
        in_query = [name for name in fields if name not in in_path]
        rows += [{"name": name, "in": "query", "required": False, "schema": properties[name]} for name in in_query]
    return {"parameters": rows} if rows else None


async def _stream(messages: AsyncIterator[Message]) -> StreamingResponse:
    """Send messages as server-sent events.

    The first message is awaited before the answer starts, so that a failure up to there is an ordinary error with its
    status; a later one is an ``error`` event.
    """
    # An empty stream is a success without events.
    first = await anext(messages, None)

    async def events() -> AsyncIterator[bytes]:
        if first is None:
            return
        yield _event(first)
        try:
            async for message in messages:
                yield _event(message)
        # Any other exception passes: the middleware logs it and ends the stream with the same kind of event.
        except ServiceError as error:
            yield b"event: error\ndata: " + orjson.dumps(error_body(error)) + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _event(message: Message) -> bytes:
    oneofs = message.DESCRIPTOR.oneofs
    chosen = message.WhichOneof(oneofs[0].name) if oneofs else None
    body = getattr(message, chosen) if chosen else message
    return f"event: {chosen or 'message'}\ndata: ".encode() + message_to_bytes(body) + b"\n\n"
