"""A new engine of the generator: replies with the last message."""

from collections.abc import AsyncGenerator, Sequence

from searchrl.platform.health import Health
from services.generator.engines.base import BuiltEngine, ChatMessage, ChatReply
from services.generator.engines.settings import ChatEngineSettings
from services.generator.metrics import GeneratorMetrics


class ParrotEngine:
    """Says what it hears."""

    model = "parrot"

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0, choices: Sequence[str] = ()
    ) -> ChatReply:
        return ChatReply(messages[-1].content, self.model, 1, 1)

    async def stream(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, temperature: float = 0.0
    ) -> AsyncGenerator[str | ChatReply]:
        yield messages[-1].content
        yield await self.chat(messages, max_tokens=max_tokens)

    async def close(self) -> None: ...


def build_parrot(settings: ChatEngineSettings, name: str, metrics: GeneratorMetrics, health: Health) -> BuiltEngine:
    return BuiltEngine(ParrotEngine())
