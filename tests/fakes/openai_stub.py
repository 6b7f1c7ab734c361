"""A chat completion server that fails on demand: a real HTTP server in this process, so that real sockets break."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
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
    """Return a completion with some fields changed."""
    return {**OK, **changes}


def said(text: str | None, completion_tokens: int = 1) -> dict[str, Any]:
    """Return a completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": completion_tokens, "total_tokens": 5 + completion_tokens}
    return whole(choices=[choice], usage=usage)


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    """Return one event of a stream."""
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
    """Answers with the scripted steps, one per request; the last one is repeated.

    A step is a dict (200 with this JSON), an int (this status, with an error body), bytes (200 with this body as
    JSON type), a list of bytes (a stream; None in it breaks the connection), or "hang".
    """

    def __init__(self, *steps: dict[str, Any] | int | bytes | Sequence[bytes | None] | str) -> None:
        self._steps = list(steps)
        self.requests: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.queries: list[str] = []
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
        self.bodies.append(body)
        self.paths.append(scope["path"])
        self.queries.append(scope["query_string"].decode())
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
        parts: Sequence[bytes | None]
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
    """Serve on a port chosen by the system; yields the base URL."""
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


class ModalLLM(OpenAIStub):
    """A model server with one peculiarity, selected by ``mode`` from ``REFUSALS`` and ``_reply``.

    It streams on request, character by character; ``asked`` are the bodies of the requests that it accepted.
    """

    def __init__(self, mode: str, text: str = "Rome") -> None:
        super().__init__({})
        self._mode = mode
        self._text = text
        self.asked: list[dict[str, Any]] = []

    async def _answer(self, step: Any, send: Callable[..., Any]) -> None:
        request = self.requests[-1]
        if self.paths[-1].endswith("/models"):
            owner = "vllm" if self._mode == "vllm" else "someone"
            await super()._answer({"object": "list", "data": [{"id": "stub-model", "owned_by": owner}]}, send)
            return
        refusal = REFUSALS[self._mode](request) if self._mode in REFUSALS else None
        if refusal is not None:
            await _refuse(*refusal, send)
            return
        self.asked.append(request)
        message, finish_reason, tokens = self._reply()
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
            await super()._answer(whole(choices=[choice], usage=usage), send)
            return
        events = [event for name, value in message.items() for event in _deltas(name, value)]
        events += [_event({"delta": {}, "finish_reason": finish_reason}, usage), b"data: [DONE]\n\n"]
        await super()._answer(events, send)

    def _reply(self) -> tuple[dict[str, Any], str, int]:
        thought = "Okay. Paris or London? No, the capital of Ystad."
        by_mode: dict[str, tuple[dict[str, Any], str, int]] = {
            "think": ({"content": f"<think>\n{thought}\n</think>\n\n{self._text}"}, "stop", 20),
            "think_noopen": ({"content": f"{thought}\n</think>\n\n{self._text}"}, "stop", 20),
            "think_cut": ({"content": f"<think>\n{thought}"}, "length", 20),
            "null_content": ({"content": None, "reasoning_content": thought}, "length", 128),
            "reasoning_only": ({"content": None, "reasoning": thought}, "stop", 20),
            "cut": ({"content": self._text}, "length", 9),
            "parts": ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Rome"}]}, "stop", 9),
            "refusal": ({"content": None, "refusal": "I cannot help with that."}, "stop", 9),
            "tool_calls": (
                {"content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
                "tool_calls",
                9,
            ),
            "filtered": ({"content": None}, "content_filter", 0),
            "nothing": ({"content": None}, "stop", 0),
            "aborted": ({"content": "Ro"}, "abort", 1),
        }
        return by_mode.get(self._mode, ({"content": self._text}, "stop", 1))


def _gemma(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if any(message["role"] == "system" for message in request["messages"]):
        return 400, {"object": "error", "message": "System role not supported", "code": 400}
    return None


def _max_completion(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if "max_tokens" not in request:
        return None
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
    return 400, {"error": error}


def _temp_unsupported(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if request.get("temperature", 1) == 1:
        return None
    message = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
    error = {"message": message, "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value"}
    return 400, {"error": error}


def _no_stream_options(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if "stream_options" not in request:
        return None
    detail = {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
    return 422, {"detail": [detail]}


def _reasoning_model(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    return _max_completion(request) or _temp_unsupported(request)


def _wrong_key(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    return 401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}


def _no_model(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    return 404, {"error": {"message": "The model `stub-model` does not exist", "code": "model_not_found"}}


def _too_long(request: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    message = "'max_tokens' or 'max_completion_tokens' is too large: the maximum context length is 512 tokens"
    return 400, {"error": {"message": message, "type": "BadRequestError", "param": "max_tokens", "code": 400}}


REFUSALS: dict[str, Callable[[dict[str, Any]], tuple[int, dict[str, Any]] | None]] = {
    "gemma": _gemma,
    "max_completion": _max_completion,
    "temp_unsupported": _temp_unsupported,
    "stream_options": _no_stream_options,
    "reasoning_model": _reasoning_model,
    "wrong_key": _wrong_key,
    "no_model": _no_model,
    "too_long": _too_long,
}


async def _refuse(status: int, body: dict[str, Any], send: Callable[..., Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def _deltas(name: str, value: Any) -> list[bytes]:
    """Return the events that stream one field of a message; a text in single characters."""
    if value is None:
        return []
    pieces = list(value) if isinstance(value, str) else [value]
    return [_event({"delta": {name: piece}, "finish_reason": None}, None) for piece in pieces]


def _event(choice: dict[str, Any], usage: dict[str, Any] | None) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "stub-model",
        "choices": [{"index": 0, **choice}],
        "usage": usage,
    }
    return f"data: {json.dumps(body)}\n\n".encode()
