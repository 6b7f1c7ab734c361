"""Provides the engine for a model behind an OpenAI-compatible API, with retries within the deadline."""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TypeVar

import orjson

from searchrl.domain.thoughts import starts_inside_thought
from searchrl.errors import DeadlineExceeded, InvalidRequest, ServiceError
from searchrl.platform.request_context import deadline, remaining_seconds
from searchrl.platform.retry import RetryPolicy
from searchrl.platform.telemetry.tracing import Span, span, start_span, trace_headers
from services.generator.engines.base import ChatMessage, ChatReply
from services.generator.engines.event_stream import EventBuffer, StreamedText, parse_chunk, split_data
from services.generator.engines.openai_reply import ReplyReader
from services.generator.engines.request_form import ChatCall, RequestForm, RequestWriter
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_http import (
    EngineMisconfigured,
    UpstreamHttp,
    UpstreamReply,
    UpstreamStream,
    error_for_status,
)
from services.generator.metrics import EngineMetrics

logger = logging.getLogger(__name__)

SPAN = "POST /v1/chat/completions"
PATH = "/chat/completions"
PROBE = (ChatMessage("system", "Reply with one word."), ChatMessage("user", "Reply with the word yes."))
PROBE_TOKENS = 16
"""The smallest limit that OpenAI's newer API accepts; enough for a word."""
PROBE_SECONDS = 30.0
"""Deadline of a probe, if ``timeout_seconds`` is not shorter; while it waits, readiness keeps its last value."""
Result = TypeVar("Result")
Outcome = Callable[[ServiceError | None], object]


class OpenAIEngine:
    """Chat completions of ``settings.model`` at ``settings.base_url``.

    Connection failures, 408, 409, 429, 5xx and replies that are no completion are retried with jitter while the
    deadline allows; then they are ``Unavailable`` or ``Overloaded``. ``outcome`` is called with the outcome of every
    call.

    ``thoughts`` is where replies start: "inside" a thought that the chat template opened, or "outside". Replies that
    start inside are streamed from the end of the thought. With "auto", streams are held back until one reply has shown
    where replies start, because text that has been sent cannot be retracted. If replies started outside so far and
    one starts inside, its stream has sent the thought; its final reply is correct, and later streams are held back.
    """

    def __init__(
        self,
        settings: ChatEngineSettings,
        metrics: EngineMetrics,
        *,
        retries: RetryPolicy | None = None,
        use_proxies: bool = True,
        outcome: Outcome | None = None,
    ) -> None:
        self.model = settings.model
        self._metrics = metrics
        self._span_attributes = {"searchrl.engine": metrics.engine, "gen_ai.request.model": settings.model}
        self._timeout_seconds = settings.timeout_seconds
        self._retries = retries or RetryPolicy(attempts=settings.attempts)
        self._http = UpstreamHttp(
            settings.base_url, key=settings.secret_key(), headers=settings.secret_headers(), use_proxies=use_proxies
        )
        self._writer = RequestWriter(settings)
        # None: not known yet. Shared by all requests of this engine, which run in one event loop.
        self._starts_inside = {"auto": None, "inside": True, "outside": False}[settings.thoughts]
        self._is_fixed = settings.thoughts != "auto"
        self._outcome = outcome or (lambda _: None)

    @property
    def form(self) -> RequestForm:
        """The form of requests that the server accepts, as far as it is known."""
        return self._writer.form

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] = (),
    ) -> ChatReply:
        """See ``ChatEngine``."""
        call = ChatCall(messages, max_tokens, temperature, choices)
        with self._report_outcome(), deadline(self._timeout_seconds), self._metrics.measure_call("chat"):
            reply = await self._retry(lambda: self._attempt(call))
        self._metrics.add_tokens(reply.prompt_tokens, reply.completion_tokens)
        return reply

    async def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        """See ``ChatEngine``. Retried only until the server starts to answer."""
        call = ChatCall(messages, max_tokens, temperature, streamed=True)
        # Not ``span``: a generator is suspended at each yield, and a span that is current would then be current in its
        # reader's code.
        called = start_span(SPAN, self._span_attributes, kind="client")
        try:
            with self._report_outcome(), self._metrics.measure_call("stream"):
                started = time.monotonic()
                with deadline(self._timeout_seconds):
                    # Kept as a time: the block has to end before the first yield, because a context variable that is
                    # set across a yield is set in the reader's code as well.
                    until = _find_deadline()
                    stream = await self._retry(lambda: self._open_stream(call, called))
                # Closed here and not by the garbage collector: a client that disconnects must end the engine's
                # generation now.
                async with aclosing(self._pieces(stream, started, until)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, ChatReply):
                            called.set_attributes(_usage(piece))
                        yield piece
        except BaseException as error:
            called.record_error(error)
            raise
        finally:
            called.end()

    async def probe(self) -> None:
        """Request one word, without retries; learns from refusals which form of requests the server accepts.

        Raises:
            ServiceError: the engine does not answer; the message says why.
        """
        call = ChatCall(PROBE, PROBE_TOKENS, 0.0)
        with deadline(min(self._timeout_seconds, PROBE_SECONDS)):
            # Before the request, so that it also shows whether the server accepts the sampling fields that vLLM gets.
            await self._recognize_vllm()
            answer = await self._post(call)
        if not answer.is_success:
            raise error_for_status(answer.status, answer.content, answer.retry_after)
        try:
            self._read(answer)
        except InvalidRequest as error:  # reasoning took all tokens of the probe: the engine works
            logger.info("the engine answers, but wrote no word within %s tokens: %s", PROBE_TOKENS, error)

    async def close(self) -> None:
        """See ``ChatEngine``."""
        await self._http.close()

    async def _retry(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Retry failures that may pass. A misconfiguration is ``Unavailable`` to callers, but a retry does not help."""

        # Returned and not raised, because its kind is UNAVAILABLE, which the policy would retry.
        async def once() -> Result | EngineMisconfigured:
            try:
                return await attempt()
            except EngineMisconfigured as error:
                return error

        result = await self._retries.run(once)
        if isinstance(result, EngineMisconfigured):
            raise result
        return result

    async def _attempt(self, call: ChatCall) -> ChatReply:
        with span(SPAN, self._span_attributes, kind="client") as called, self._count_failure():
            answer = await self._post(call)
            if not answer.is_success:
                raise error_for_status(answer.status, answer.content, answer.retry_after)
            reply = self._read(answer)
            called.set_attributes(_usage(reply))
            return reply

    async def _post(self, call: ChatCall) -> UpstreamReply:
        headers = dict(trace_headers())

        async def post(form: RequestForm) -> UpstreamReply:
            return await self._http.post(PATH, orjson.dumps(self._writer.body(call, form)), _find_deadline(), headers)

        return await self._writer.send(post)

    def _read(self, answer: UpstreamReply) -> ChatReply:
        reader = ReplyReader(self.model)
        reader.read(answer.content)
        return self._finish(reader)

    def _finish(self, reader: ReplyReader) -> ChatReply:
        # A closing tag without an opening one is proof that the prompt opened the thought. The opposite, a complete
        # reply without one, only counts while nothing is known: a model that may skip its thought does not disprove an
        # earlier proof.
        closes = starts_inside_thought(reader.raw)
        if not self._is_fixed and (closes or (self._starts_inside is None and _is_evidence(reader))):
            self._learn_where_replies_start(closes)
        # If replies start inside a thought and the token limit ended this one before the closing tag, its text looks
        # like an answer and is none.
        cut = reader.finish_reason == "length" and not closes
        return reader.finish(is_all_thought=bool(self._starts_inside) and cut and bool(reader.raw))

    def _learn_where_replies_start(self, inside: bool) -> None:
        if self._starts_inside is not inside:
            was_outside, self._starts_inside = self._starts_inside is False, inside
            if inside:
                logger.info("replies of %s begin inside a thought; streams start where it ends", self.model)
            if was_outside:
                logger.warning(
                    "a reply of %s began inside a thought, unlike those before: a stream of it held the thought; "
                    "set engine.thoughts: inside",
                    self.model,
                )

    async def _open_stream(self, call: ChatCall, called: Span) -> UpstreamStream | ChatReply:
        """Return the stream once it starts, or the reply of a server that does not stream."""
        headers = dict(trace_headers(called))
        # The writer learns from statuses, so ``post`` returns the status of a stream and leaves the stream itself here.
        opened: list[UpstreamStream] = []

        async def post(form: RequestForm) -> UpstreamReply:
            body = orjson.dumps(self._writer.body(call, form))
            stream = await self._http.stream(PATH, body, _find_deadline(), headers)
            if stream.is_event_stream:
                opened.append(stream)
                return UpstreamReply(stream.status, stream.content_type, b"")
            try:
                return await stream.read_all(_find_deadline())
            finally:
                stream.close()

        with self._count_failure():
            answer = await self._writer.send(post)
            if opened:
                return opened[0]
            if not answer.is_success:
                raise error_for_status(answer.status, answer.content, answer.retry_after)
            return self._read(answer)

    async def _pieces(
        self, stream: UpstreamStream | ChatReply, started: float, until: float
    ) -> AsyncGenerator[str | ChatReply]:
        """Yield the text as it is received, then the complete reply."""
        if isinstance(stream, ChatReply):
            if stream.text:
                self._metrics.observe_first_text(time.monotonic() - started)
                yield stream.text
            self._metrics.add_tokens(stream.prompt_tokens, stream.completion_tokens)
            yield stream
            return
        reader, shown = ReplyReader(self.model), StreamedText(hold_back=self._starts_inside is not False)
        is_first = True
        try:
            # Not retried from here on: part of the text may have been shown already.
            with self._count_failure():
                async with aclosing(_chunks(stream, until)) as chunks:
                    async for chunk in chunks:
                        text = shown.add(reader.add(chunk))
                        if text:
                            if is_first:
                                self._metrics.observe_first_text(time.monotonic() - started)
                                is_first = False
                            yield text
                reply = self._finish(reader)
        finally:
            stream.close()
        if reply.text and (rest := shown.finish()):
            if is_first:
                self._metrics.observe_first_text(time.monotonic() - started)
            yield rest
        self._metrics.add_tokens(reply.prompt_tokens, reply.completion_tokens)
        yield reply

    async def _recognize_vllm(self) -> None:
        """vLLM applies the sampling defaults of a model's ``generation_config.json``, so ours are sent to it."""
        try:
            answer = await self._http.get("/models", _find_deadline())
            rows = orjson.loads(answer.content)["data"] if answer.is_success else []
            owners = {row.get("owned_by") for row in rows}
        except (ServiceError, ValueError, KeyError, TypeError, AttributeError):
            return  # not every server lists its models
        if "vllm" in owners:
            self._writer.learn("has_sampling_fields", True)

    @contextmanager
    def _report_outcome(self) -> Iterator[None]:
        """Report to ``outcome`` how a call ended; a call that its caller cancelled shows nothing about the engine."""
        try:
            yield
        except ServiceError as error:
            self._outcome(error)
            raise
        self._outcome(None)

    @contextmanager
    def _count_failure(self) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            self._metrics.count_failed_attempt(error)
            raise


async def _chunks(stream: UpstreamStream, until: float) -> AsyncGenerator[dict[str, object]]:
    """Yield the chunks of a stream."""
    events = EventBuffer()
    while part := await stream.read_part(until):
        for data in split_data(events.add(part)):
            # The mark is the end, whatever follows it; some servers keep the connection open after it.
            if data == b"[DONE]":
                return
            yield parse_chunk(data)
    for data in split_data(events.rest()):
        if data != b"[DONE]":
            yield parse_chunk(data)


def _is_evidence(reader: ReplyReader) -> bool:
    """Whether a reply shows where replies start: a truncated one may end in the middle of a thought."""
    return reader.finish_reason == "stop" and bool(reader.raw.strip())


def _find_deadline() -> float:
    """Return the current deadline as a time of ``time.monotonic``; an hour from now if there is none.

    Raises:
        DeadlineExceeded: it has passed.
    """
    left = remaining_seconds()
    if left is not None and left <= 0:
        raise DeadlineExceeded("no time left to call the engine")
    return time.monotonic() + (left if left is not None else 3600.0)


def _usage(reply: ChatReply) -> dict[str, str | int]:
    return {
        "gen_ai.usage.input_tokens": reply.prompt_tokens,
        "gen_ai.usage.output_tokens": reply.completion_tokens,
        "gen_ai.response.finish_reason": reply.finish_reason,
    }
