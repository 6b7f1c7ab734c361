"""How does a model behind an OpenAI-compatible API answer? With retries inside the deadline, and never with nothing."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import openai
from openai.types.chat import ChatCompletionChunk

from searchrl.clients.retry_policy import RetryPolicy
from searchrl.errors import ServiceError, Unavailable
from searchrl.platform.request_context import deadline, remaining_seconds
from services.generator.engines.chat_engine import ChatMessage, ChatReply
from services.generator.engines.openai_reply import StreamedReply, engine_failure, reply_of
from services.generator.engines.upstream_status import api_root
from services.generator.metrics import EngineMetrics

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
            try:
                return reply_of(await self._client.chat.completions.create(**body, timeout=remaining_seconds()))
            except (openai.OpenAIError, ServiceError, ValueError) as error:
                raise self._failed(error) from error

        with deadline(self._timeout_seconds), self._metrics.call("chat"):
            reply = await self._retries.run(once)
        self._metrics.tokens(reply.prompt_tokens, reply.completion_tokens)
        return reply

    async def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        """See ``ChatEngine``. Tried again only until the server begins to answer."""
        body = self._body(messages, max_tokens, temperature)
        with self._metrics.call("stream"):
            with deadline(self._timeout_seconds):
                chunks = await self._retries.run(lambda: self._begin(body))
            written = StreamedReply(self.model)
            try:
                async for chunk in chunks:
                    text = written.add(chunk)
                    if text:
                        yield text
                reply = written.finish()
            except (openai.OpenAIError, httpx.HTTPError, ServiceError, ValueError) as error:
                raise self._failed(error) from error
            finally:
                await chunks.close()
            self._metrics.tokens(reply.prompt_tokens, reply.completion_tokens)
            yield reply

    async def close(self) -> None:
        """See ``ChatEngine``."""
        await self._client.close()

    async def _begin(self, body: dict[str, Any]) -> Chunks:
        options = {"stream": True, "stream_options": {"include_usage": True}}
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
