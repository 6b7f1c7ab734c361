"""Defines what an engine is, and what the builders of ``ENGINES`` return."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.generator.engines.upstream_api import UpstreamApi

Hook = Callable[[], Awaitable[None]]
"""Starts or stops a part of the service."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A finished reply. ``model`` is the name that the engine reports."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = "stop"


class ChatEngine(Protocol):
    """A frozen language model that continues conversations."""

    model: str

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] = (),
    ) -> ChatReply:
        """Return one reply; with ``choices``, an engine that can constrain its output replies with one of them.

        Raises:
            searchrl.errors.ServiceError: the engine failed; that never becomes an empty reply.
        """
        ...

    def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        """Yield pieces of text as they are written, then the finished reply; errors as in ``chat``."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, the model server behind it if there is one, and what start and stop run; closers run in reverse."""

    engine: ChatEngine
    upstream: UpstreamApi | None = None
    starters: list[Hook] = field(default_factory=list)
    closers: list[Hook] = field(default_factory=list)
