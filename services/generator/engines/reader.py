"""Provides the small world's reader as an engine, which runs in this process and without a model."""

import re
from collections.abc import AsyncGenerator, Sequence

from searchrl.platform.health import Health
from searchrl.small_world.reader import answer_chat
from services.generator.engines.base import BuiltEngine, ChatMessage, ChatReply
from services.generator.engines.settings import ChatEngineSettings
from services.generator.metrics import GeneratorMetrics

_WORD = re.compile(r"\w+|[^\w\s]")
# Each piece keeps the white space before its word, and the last one also that after it: joined, they are the reply.
_PIECE = re.compile(r"\s*\S+(?:\s+\Z)?")


class ReaderEngine:
    """Answers only what the documents in its context state, else "unknown"; a token is a word or punctuation mark.

    It answers requests of the judge by the span check. It is deterministic: temperature and the token limit have no
    effect.
    """

    def __init__(self, model: str = "reader") -> None:
        self.model = model

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] = (),
    ) -> ChatReply:
        """See ``ChatEngine``."""
        text = answer_chat([{"role": message.role, "content": message.content} for message in messages])
        prompt_tokens = sum(len(_WORD.findall(message.content)) for message in messages)
        return ChatReply(text, self.model, prompt_tokens, len(_WORD.findall(text)))

    async def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        """See ``ChatEngine``; word by word."""
        reply = await self.chat(messages, max_tokens=max_tokens, temperature=temperature)
        for piece in _PIECE.findall(reply.text):
            yield piece
        yield reply

    async def close(self) -> None:
        """Nothing to release."""


def build_reader(settings: ChatEngineSettings, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    """Build the reader, which needs no settings and no server."""
    return BuiltEngine(ReaderEngine())
