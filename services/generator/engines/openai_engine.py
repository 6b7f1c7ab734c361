"""How does a model behind an OpenAI-compatible API answer? With retries inside the deadline, and never with nothing."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import openai
from openai.types.chat import ChatCompletionChunk

from searchrl.clients.retry_policy import RetryPolicy
from searchrl.errors import ServiceError, Unavailable
from searchrl.platform.request_context import deadline, remaining_seconds
from searchrl.platform.tracing import Span, span, start_span, trace_headers
from services.generator.engines.chat_engine import ChatMessage, ChatReply
from services.generator.engines.openai_reply import StreamedReply, engine_failure, reply_of
from services.generator.engines.upstream_status import api_root
from services.generator.metrics import EngineMetrics

SPAN = "POST /v1/chat/completions"
Chunks = openai.AsyncStream[ChatCompletionChunk]


class OpenAIEngine:
    """Chat completions of one model at ``base_url``.

    Connection failures, 408, 409, 429, 5xx and replies that are no completion are tried again with jitter while the
    deadline allows; then they are ``Unavailable`` or ``Overloaded``. ``structured_outputs`` says that the server takes
    vLLM's field of that name; elsewhere ``choices`` constrain nothing and the caller parses what comes.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        metrics: EngineMetrics,
        *,
        key: str | None = None,
        structured_outputs: bool = False,
        timeout_seconds: float = 60.0,
        retries: RetryPolicy | None = None,
        use_proxies: bool = True,
    ) -> None:
        self.model = model
        self._metrics = metrics
        self._span_attributes = {"searchrl.engine": metrics.engine, "gen_ai.request.model": model}
        self._structured_outputs = structured_outputs
        self._timeout_seconds = timeout_seconds
        self._retries = retries or RetryPolicy()
        self._client = openai.AsyncOpenAI(
            base_url=api_root(base_url),
            api_key=key or "none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=use_proxies),
        )

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] = (),
    ) -> ChatReply:
        """See ``ChatEngine``."""
        body = self._body(messages, max_tokens, temperature)
        if choices and self._structured_outputs:
            body["extra_body"] = {"structured_outputs": {"choice": list(choices)}}

        async def once() -> ChatReply:
            with span(SPAN, self._span_attributes, kind="client") as called:
                try:
                    reply = reply_of(
                        await self._client.chat.completions.create(
                            **body, timeout=remaining_seconds(), extra_headers=dict(trace_headers())
                        )
                    )
                except (openai.OpenAIError, ServiceError, ValueError) as error:
                    raise self._failed(error) from error
                called.note(_usage(reply))
                return reply

        with deadline(self._timeout_seconds), self._metrics.call("chat"):
            reply = await self._retries.run(once)
        self._metrics.tokens(reply.prompt_tokens, reply.completion_tokens)
        return reply

    async def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        """See ``ChatEngine``. Tried again only until the server begins to answer."""
        body = self._body(messages, max_tokens, temperature)
        called = start_span(SPAN, self._span_attributes, kind="client")
        try:
            with self._metrics.call("stream"):
                started = time.monotonic()
                with deadline(self._timeout_seconds):
                    chunks = await self._retries.run(lambda: self._begin(body, called))
                async with aclosing(self._pieces(chunks, started)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, ChatReply):
                            called.note(_usage(piece))
                        yield piece
        except BaseException as error:
            called.fail_by(error)
            raise
        finally:
            called.end()

    async def close(self) -> None:
        """See ``ChatEngine``."""
        await self._client.close()

    async def _pieces(self, chunks: Chunks, started: float) -> AsyncGenerator[str | ChatReply]:
        """The text as it comes, then the whole reply."""
        written = StreamedReply(self.model)
        is_first = True
        try:
            async for chunk in chunks:
                text = written.add(chunk)
                if text:
                    if is_first:
                        self._metrics.first_text(time.monotonic() - started)
                        is_first = False
                    yield text
            reply = written.finish()
        except (openai.OpenAIError, httpx.HTTPError, ServiceError, ValueError) as error:
            raise self._failed(error) from error
        finally:
            await chunks.close()
        self._metrics.tokens(reply.prompt_tokens, reply.completion_tokens)
        yield reply

    async def _begin(self, body: dict[str, Any], called: Span) -> Chunks:
        options = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_headers": dict(trace_headers(called)),
        }
        try:
            chunks = await self._client.chat.completions.create(**body, **options, timeout=remaining_seconds())
        except (openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from error
        if not isinstance(chunks, openai.AsyncStream):
            raise self._failed(Unavailable("the engine did not answer with a stream", None))
        return chunks

    def _body(self, messages: Sequence[ChatMessage], max_tokens: int, temperature: float) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }

    def _failed(self, error: Exception) -> ServiceError:
        failure = error if isinstance(error, ServiceError) else engine_failure(error)
        self._metrics.attempt_failed(failure)
        return failure


def _usage(reply: ChatReply) -> dict[str, str | int]:
    return {
        "gen_ai.usage.input_tokens": reply.prompt_tokens,
        "gen_ai.usage.output_tokens": reply.completion_tokens,
        "gen_ai.response.finish_reason": reply.finish_reason,
    }
