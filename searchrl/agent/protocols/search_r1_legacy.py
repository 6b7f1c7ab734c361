"""Implements the search protocol of Search-R1's published checkpoints."""

from collections.abc import Sequence

from searchrl.agent.protocols.base import Answer, Invalid, LoopRules, ParsedTurn, Search
from searchrl.agent.protocols.parsing import as_sendable, cut_after
from searchrl.agent.protocols.search_r1 import ACTION, TAG_KINDS, SearchR1Prompt
from searchrl.agent.rendering import distinct_by_id, render_legacy_observation
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock

INVALID_REPLY = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
    "If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)
"""Part of the interface of Search-R1's checkpoints, so byte for byte theirs."""


class SearchR1LegacyProtocol(SearchR1Prompt):
    """The Search-R1 protocol under the rules with which its published checkpoints were trained.

    The first ``<search>`` or ``<answer>`` anywhere in the turn counts, thoughts included; the turn is cut after the
    first ``</search>``, else after the first ``</answer>``. An empty query is invalid, and an invalid turn gets
    Search-R1's reply and uses up one search. Every other turn is well formed.
    """

    rules = LoopRules(TAG_KINDS, cuts_documents=False, truncation_ends=False)

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Parse the first search or answer."""
        # A search takes precedence in the cut even after an answer, but the action is the first of the two, as in
        # Search-R1.
        match = ACTION.search(cut_after(text, "</search>" if "</search>" in text else "</answer>"))
        if match is None:
            return ParsedTurn(Invalid(INVALID_REPLY, "neither a search nor an answer"), well_formed=False)
        content = as_sendable(match[2]).strip()
        if match[1] == "answer":
            return ParsedTurn(Answer(content))
        if not content:
            return ParsedTurn(Invalid(INVALID_REPLY, "an empty query"), well_formed=False)
        return ParsedTurn(Search((content,)))

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return ``\\n\\n<information>..</information>\\n\\n``, documents numbered from 1."""
        return render_legacy_observation(results)

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Return every retrieved passage, initial ones included, each once, in the order seen."""
        return distinct_by_id([result.passage for block in blocks for result in block.results])
