"""A chat engine with scripted replies."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from services.generator.engines.base import ChatMessage, ChatReply

FOREVER = "hang for ever"


class ScriptedEngine:
    """Returns the scripted replies in order, repeats the last one, and records the calls.

    A reply is text, an exception to raise, or ``FOREVER``. ``waiting`` is set once a call hangs, ``cancelled`` once
    such a call was canceled. A stream yields single words; after ``break_after`` words it raises ``break_with``.
    """

    def __init__(
        self,
        *replies: str | Exception,
        model: str = "scripted",
        break_after: int | None = None,
        break_with: Exception | None = None,
    ) -> None:
        self.model = model
        self.calls: list[tuple[tuple[ChatMessage, ...], int, tuple[str, ...]]] = []
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.closed = False
        self._replies = list(replies)
        self._break_after = break_after
        self._break_with = break_with

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] = (),
    ) -> ChatReply:
        self.calls.append((tuple(messages), max_tokens, tuple(choices)))
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if isinstance(reply, Exception):
            raise reply
        if reply == FOREVER:
            await self._hang()
        return ChatReply(reply, self.model, prompt_tokens=7, completion_tokens=len(reply.split()))

    async def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        reply = await self.chat(messages, max_tokens=max_tokens, temperature=temperature)
        for index, word in enumerate(reply.text.split()):
            if index == self._break_after and self._break_with is not None:
                raise self._break_with
            yield word if index == 0 else f" {word}"
        yield reply

    async def close(self) -> None:
        self.closed = True

    async def _hang(self) -> None:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
