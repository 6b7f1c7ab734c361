"""What message does the generator read: which instruction, which documents, how many of them?"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.domain.passage import Passage
from searchrl.errors import ConfigurationError
from services.generator.engines.chat_engine import ChatMessage
from services.generator.prompting.token_counter import TokenCounter

PLACEHOLDER = "{documents}"

WITH_DOCUMENTS = (
    "Answer the user's question with a name, a number or a short phrase and nothing else. "
    "These documents may help; some may be off topic.\n\n" + PLACEHOLDER
)
CLOSED_BOOK = "Answer the user's question with a name, a number or a short phrase and nothing else."


@dataclass(frozen=True, slots=True)
class ContextMessage:
    """The conversation to send, the documents that fitted, and the tokens they take."""

    messages: tuple[ChatMessage, ...]
    documents: tuple[Passage, ...]
    context_tokens: int


class ContextTemplate:
    """Renders documents into the system message; the user message is the question, unchanged.

    A document is given whole or not at all: one that does not fit into what is left of the budget is left out.
    """

    def __init__(self, counter: TokenCounter, max_context_tokens: int, template: str = WITH_DOCUMENTS) -> None:
        if template.count(PLACEHOLDER) != 1:
            raise ConfigurationError(f"the context template must hold {PLACEHOLDER} exactly once")
        self._counter = counter
        self.max_context_tokens = max_context_tokens
        self._before, self._after = template.split(PLACEHOLDER)
        self.version = _version(template)

    @classmethod
    def from_file(cls, path: Path, counter: TokenCounter, max_context_tokens: int) -> "ContextTemplate":
        try:
            return cls(counter, max_context_tokens, path.read_text())
        except OSError as error:
            raise ConfigurationError(f"cannot read the context template {path}: {error.strerror}") from error

    def render(self, question: str, passages: Sequence[Passage]) -> ContextMessage:
        """The message for ``question``; without passages, the closed-book instruction."""
        parts: list[str] = []
        kept: list[Passage] = []
        tokens = 0
        for passage in passages:
            text = render_document(len(kept) + 1, passage)
            size = self._counter.count(text)
            if tokens + size <= self.max_context_tokens:
                parts.append(text)
                kept.append(passage)
                tokens += size
        system = self._before + "".join(parts) + self._after if kept else CLOSED_BOOK
        messages = (ChatMessage("system", system), ChatMessage("user", question))
        return ContextMessage(messages, tuple(kept), tokens)


def _version(template: str) -> str:
    """Changes whenever the wording, or the form of a document, does."""
    form = render_document(1, Passage("id", "title", "text"))
    return hashlib.sha256("\0".join([template, CLOSED_BOOK, form]).encode()).hexdigest()[:12]


def render_document(number: int, passage: Passage) -> str:
    """One numbered document, followed by a blank line."""
    return f'Doc {number} (Title: "{passage.title}")\n{passage.text}\n\n'
