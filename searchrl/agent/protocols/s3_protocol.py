"""Implements the search protocol of s3 searchers: queries, selections and stops."""

from collections.abc import Sequence
from typing import Literal

from searchrl.agent.protocol import LoopRules, ParsedTurn
from searchrl.agent.protocols.document_text import (
    distinct_by_id,
    render_information_block,
    render_legacy_observation,
    render_observation,
)
from searchrl.agent.protocols.prompt_template import fill_template
from searchrl.agent.protocols.s3_legacy_context import assemble_from_text
from searchrl.agent.protocols.s3_legacy_turn import parse_legacy_turn, render_initial_information
from searchrl.agent.protocols.s3_prompt import LEGACY_TEMPLATE, STRICT_TEMPLATE
from searchrl.agent.protocols.s3_turn import parse_strict_turn
from searchrl.agent.untrusted_text import tags_in
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock, TokenKind

TAG_KINDS = {"think": TokenKind.THINK, "query": TokenKind.QUERY, "important_info": TokenKind.SELECTION}


class S3Protocol:
    """The s3 protocol in one of two modes.

    Strict: this project's rules. A turn is ``[<think>..</think>] [<important_info>[..]</important_info>]
    <search_complete>True|False</search_complete> [<query>{"query": ".."}</query>]``. White space between the parts is
    allowed. The query is present if and only if the search is not complete, the selection if and only if there are
    documents to select from. A selection claims the latest block and keeps the order in which it was written. Numbers
    out of range, repeated, or beyond ``max_selected`` are dropped, and the turn is then not well formed. A block with
    an empty selection contributes nothing. Unclaimed blocks contribute only if no block was ever claimed; then every
    document does, in order, which is naive RAG. Passages are deduplicated by id. An unreadable turn ends the rollout.

    Legacy: the rules with which s3's published searchers were trained, defects included; see ``s3_legacy_turn`` and
    ``s3_legacy_context``. It differs from s3 in two ways on purpose: sampled tokens are kept rather than tokenized
    again, so generation stops at ``</query>``, and a full context ends the rollout rather than losing its beginning.
    """

    name = "s3"
    stop: tuple[str, ...] = ("</query>",)

    def __init__(
        self, template: str | None = None, mode: Literal["strict", "legacy"] = "strict", max_selected: int = 3
    ) -> None:
        """``template`` holds ``{question}`` and, if the prompt shows initial documents, ``{documents}``."""
        self.is_legacy = mode == "legacy"
        self.max_selected = max_selected
        default = LEGACY_TEMPLATE if self.is_legacy else STRICT_TEMPLATE.replace("{max_selected}", str(max_selected))
        self.template = default if template is None else template
        self._tags = tags_in(self.template)
        self.rules = LoopRules(
            tag_kinds=TAG_KINDS, cuts_documents=not self.is_legacy, truncation_ends=not self.is_legacy
        )

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> GuardedText:
        """Fill the template; the documents are one information block, empty text if there are none."""
        if not initial:
            return fill_template(self.template, question, "")
        documents = (
            render_initial_information(initial) if self.is_legacy else render_information_block(initial, self._tags)
        )
        return fill_template(self.template, question, documents)

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """See ``parse_strict_turn`` and ``parse_legacy_turn``."""
        if self.is_legacy:
            return parse_legacy_turn(text)
        return parse_strict_turn(text, latest_block, self.max_selected)

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return ``\\n\\n<information>..</information>\\n\\n``, documents numbered from 1."""
        return render_legacy_observation(results) if self.is_legacy else render_observation(results, self._tags)

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Collect the passages for the generator; legacy mode parses them from the text, as s3 does."""
        if self.is_legacy:
            return assemble_from_text(transcript, blocks)
        claimed = [block for block in blocks if block.selection is not None]
        if not claimed:
            return distinct_by_id([result.passage for block in blocks for result in block.results])
        return distinct_by_id(
            [block.results[position - 1].passage for block in claimed for position in block.selection or ()]
        )
