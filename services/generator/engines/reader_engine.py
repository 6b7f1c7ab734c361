"""How does the small world's reader answer as an engine? In this process, without a model."""

import re
from collections.abc import AsyncGenerator, Sequence

from searchrl.rewards.span_match import contains_answer
from searchrl.small_world import reader
from services.generator.engines.chat_engine import ChatMessage, ChatReply
from services.generator.judging.judge_prompt import read_request

_WORD = re.compile(r"\w+|[^\w\s]")
_PIECE = re.compile(r"\s*\S+(?:\s+\Z)?")


class ReaderEngine:
    """States only what the documents in its context state, else "unknown"; one token is one word or mark.

    The system messages are its context and the last user message is the question. A request of the judge is answered
    by the span check. It is deterministic: temperature and the token limit change nothing.
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
        text = _answer(messages)
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


def _answer(messages: Sequence[ChatMessage]) -> str:
    request = read_request(messages)
    if request is not None:
        return "yes" if contains_answer(request.answer, request.golden_answers) else "no"
    question = next((message.content for message in reversed(messages) if message.role == "user"), "")
    context = "\n".join(message.content for message in messages if message.role == "system")
    return reader.answer(question, context)
