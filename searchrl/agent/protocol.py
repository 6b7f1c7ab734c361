"""How does a family of models write queries, selections, answers and stops?

A protocol is the only part of the loop that knows tags. It turns sampled text into actions and documents into text; it
keeps no state between calls, so one instance serves every rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock


@dataclass(frozen=True, slots=True)
class Search:
    """Run these queries; their results come back as information blocks."""

    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Enough was gathered; the generator answers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The policy answers by itself (Search-R1)."""

    text: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """No action could be read. ``feedback`` is the environment's reply; None ends the rollout."""

    feedback: str | None
    reason: str


Action = Search | Finish | Answer | Invalid
"""The set is open: a protocol may define further actions (``open``, ``find``) that carry their own environment step."""


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What one generation meant.

    Attributes:
        action: what to do next.
        selection: 1-based positions in the latest information block, in written order; None if no selection was made.
        well_formed: the text kept every rule of the protocol.
    """

    action: Action
    selection: tuple[int, ...] | None = None
    well_formed: bool = True


class SearchProtocol(Protocol):
    """One way of writing a search trajectory."""

    name: str
    stop: tuple[str, ...]

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> str:
        """The user message that opens the rollout."""
        ...

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Read the text the policy sampled in one turn (never text the environment wrote)."""
        ...

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> str:
        """The observation that answers a search: one list of results per query."""
        ...

    def assemble_documents(self, blocks: Sequence[InformationBlock]) -> tuple[Passage, ...]:
        """The passages that reach the generator, in order."""
        ...
