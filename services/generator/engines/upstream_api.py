"""How does a request of the OpenAI front door pass through to the engine's own server, byte for byte?"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from searchrl.errors import Unavailable
from searchrl.platform.request_context import sooner
from searchrl.platform.tracing import span, start_span, trace_headers
from services.generator.engines.upstream_status import MAX_CONNECTIONS, api_root, status_failure
from services.generator.metrics import EngineMetrics


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """An answer that goes back as it came."""

    status: int
    content_type: str
    content: bytes


class UpstreamApi:
    """Passes bodies on, so that every field the engine's server knows is served. Not retried: the caller decides."""

    def __init__(
        self,
        base_url: str,
        metrics: EngineMetrics,
        *,
        key: str | None = None,
        timeout_seconds: float = 60.0,
        use_proxies: bool = True,
    ) -> None:
        self._root = api_root(base_url)
        self._metrics = metrics
        self._span_attributes = {"searchrl.engine": metrics.engine}
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            trust_env=use_proxies,
        )

    async def post(self, path: str, body: Mapping[str, Any]) -> UpstreamReply:
        """Send ``body`` to ``path`` ("/chat/completions") and return the whole answer.

        Raises:
            ServiceError: the server cannot be reached, is overloaded, or failed (429 and 5xx).
        """
        with self._metrics.call("proxy"), span(f"POST /v1{path}", self._span_attributes, kind="client"):
            try:
                response = await self._client.post(
                    self._root + path, json=body, timeout=self._timeout(), headers=dict(trace_headers())
                )
            except httpx.HTTPError as error:
                raise Unavailable(f"the engine cannot be reached: {type(error).__name__}") from error
            self._raise_for(response.status_code, response.text, response.headers)
            return UpstreamReply(response.status_code, _content_type(response), response.content)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes | UpstreamReply]:
        """Yield the answer's bytes as they come; a refusal (4xx) is one ``UpstreamReply``.

        Raises:
            ServiceError: as ``post``; also when the connection breaks in the middle.
        """
        called = start_span(f"POST /v1{path}", self._span_attributes, kind="client")
        try:
            async with aclosing(self._stream(path, body, dict(trace_headers(called)))) as parts:
                async for part in parts:
                    yield part
        except BaseException as error:
            called.fail_by(error)
            raise
        finally:
            called.end()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _stream(
        self, path: str, body: Mapping[str, Any], headers: dict[str, str]
    ) -> AsyncGenerator[bytes | UpstreamReply]:
        with self._metrics.call("proxy"):
            try:
                async with self._client.stream(
                    "POST", self._root + path, json=body, timeout=self._timeout(), headers=headers
                ) as response:
                    if not response.is_success:
                        content = await response.aread()
                        self._raise_for(response.status_code, response.text, response.headers)
                        yield UpstreamReply(response.status_code, _content_type(response), content)
                        return
                    async for part in response.aiter_raw():
                        yield part
            except httpx.HTTPError as error:
                raise Unavailable(f"the engine broke off: {type(error).__name__}") from error

    def _timeout(self) -> float:
        return max(0.001, sooner(self._timeout_seconds) or 0.0)

    def _raise_for(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        if status == 429 or status >= 500:
            raise status_failure(status, text, headers.get("retry-after"))


def _content_type(response: httpx.Response) -> str:
    return response.headers.get("content-type", "application/json")
