"""A chat completion server that fails on demand. A real HTTP server in this process, so that sockets really break."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]

OK = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "stub-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}


def whole(**changes: Any) -> dict[str, Any]:
    """A completion with some fields changed."""
    return {**OK, **changes}


def said(text: str | None, completion_tokens: int = 1) -> dict[str, Any]:
    """A completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": completion_tokens, "total_tokens": 5 + completion_tokens}
    return whole(choices=[choice], usage=usage)


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    """One event of a stream."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "stub-model",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}],
    }
    return f"data: {json.dumps(body)}\n\n".encode()


USAGE_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub-model","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
)


class OpenAIStub:
    """Plays the scripted steps, one per request, the last one again and again.

    A step is a dict (200 with this JSON), an int (this status, with an error body), bytes (200 with this body as
    JSON type), a list of bytes (a stream; None in it breaks the connection), or "hang".
    """

    def __init__(self, *steps: dict[str, Any] | int | bytes | list[bytes | None] | str) -> None:
        self._steps = list(steps)
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.disconnected = asyncio.Event()
        self.headers: dict[str, str] = {}

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(json.loads(body or b"{}"))
        self.paths.append(scope["path"])
        self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if step == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
            return
        await self._answer(step, send)

    async def _answer(self, step: Any, send: Callable[..., Any]) -> None:
        status, kind = 200, b"application/json"
        parts: list[bytes | None]
        if isinstance(step, int):
            status, parts = step, [json.dumps({"error": {"message": f"status {step}", "type": "stub"}}).encode()]
        elif isinstance(step, list):
            kind, parts = b"text/event-stream", step
        else:
            parts = [step if isinstance(step, bytes) else json.dumps(step).encode()]
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for part in parts:
            if part is None:
                raise ConnectionError("the stub breaks the connection on purpose")
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def serving(stub: OpenAIStub) -> AsyncIterator[str]:
    """Serve on a port of the system's choice; yields the base URL."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(stub, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:
            await asyncio.sleep(0)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
