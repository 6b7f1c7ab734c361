"""Defines the interface of a search protocol: how a family of models writes queries, selections, answers and stops.

A protocol is the only part of the loop that knows tags. It turns sampled text into actions and documents into text; it
keeps no state between calls, so one instance serves every rollout.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from searchrl.agent.types import Limits
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock, TokenKind


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


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of an environment step: text for the policy, and documents if it found any.

    An observation with text from outside is a ``GuardedText``; a plain ``str`` is trusted.
    """

    observation: str
    blocks: tuple[InformationBlock, ...] = ()


class EnvironmentAction(Protocol):
    """Any further action (``open``, ``find``): it carries its own environment step, so the loop need not know it.

    Whatever the step needs (a document store, a pager) is given to the action by the protocol that parsed it. A
    Protocol because this package may import the standard library only, and such an action calls a service.
    """

    @property
    def name(self) -> str:
        """The label in ``Turn.action``."""
        ...

    async def step(self, blocks: Sequence[InformationBlock]) -> StepResult:
        """Run the action; ``blocks`` are the documents shown so far.

        Raises:
            searchrl.errors.ServiceError: a dependency failed; an outage never becomes an observation.
        """
        ...


Action = Search | Finish | Answer | Invalid | EnvironmentAction
"""The four actions that the loop handles itself, and any further ones."""


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """The meaning of one generation.

    Attributes:
        action: what to do next.
        selection: 1-based positions in the latest information block, in written order; None if no selection was made.
        well_formed: the text kept every rule of the protocol.
    """

    action: Action
    selection: tuple[int, ...] | None = None
    well_formed: bool = True


@dataclass(frozen=True, slots=True)
class LoopRules:
    """The rules of the loop in which model families differ; the defaults are this project's rules.

    Attributes:
        tag_kinds: kind of the sampled tokens inside each tag, the tag's own tokens included.
        cuts_documents: in an observation that is too long, the texts of the longest documents are cut. If False it
            loses its last tokens, closing tag included, as s3 and Search-R1 do.
        truncation_ends: a turn that hit its token limit before it wrote a stop tag ends the rollout. If False it is
            read like any other turn.
    """

    tag_kinds: Mapping[str, TokenKind] = field(default_factory=dict)
    cuts_documents: bool = True
    truncation_ends: bool = True


class SearchProtocol(Protocol):
    """One format of search trajectories: rendering of prompts and observations, parsing of turns."""

    # The engine ends a turn at any of these texts and keeps the tokens that spell it.
    stop: tuple[str, ...]
    rules: LoopRules

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> GuardedText:
        """Return the user message that opens the rollout; question and documents are untrusted in it."""
        ...

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Parse the text that the policy sampled in one turn (never text that the environment wrote)."""
        ...

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return the observation after a search: one list of results per query; documents are untrusted in it."""
        ...

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Return the passages that reach the generator, in order.

        ``transcript`` is the text as it was fed and sampled: the prompt, then turns and observations alternately,
        beginning with a turn. Only legacy modes read it.
        """
        ...


ProtocolBuilder = Callable[[str | None, Limits], SearchProtocol]
"""Builds a protocol from a prompt template (None for the protocol's own) and the limits of a rollout."""
