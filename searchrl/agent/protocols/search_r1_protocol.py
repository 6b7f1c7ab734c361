"""Implements the search protocol of Search-R1 models: queries and answers."""

import re
from collections.abc import Sequence
from typing import Literal

from searchrl.agent.protocol import Answer, Invalid, LoopRules, ParsedTurn, Search
from searchrl.agent.protocols.document_text import (
    distinct_by_id,
    render_information_block,
    render_legacy_observation,
    render_observation,
)
from searchrl.agent.protocols.json_query import as_sendable
from searchrl.agent.protocols.prompt_template import fill_template
from searchrl.agent.protocols.tags import cut_after
from searchrl.agent.untrusted_text import tags_in
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.thoughts import strip_thoughts
from searchrl.domain.trajectory import InformationBlock, TokenKind

TAG_KINDS = {"think": TokenKind.THINK, "search": TokenKind.QUERY, "answer": TokenKind.ANSWER}
MAX_QUERY_CHARACTERS = 1000
"""In strict mode a longer query is cut and makes the turn not well formed; see ``s3_turn``."""

LEGACY_INVALID_REPLY = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
    "If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)
"""Part of the interface of Search-R1's checkpoints, so byte for byte theirs."""

INVALID_REPLY = (
    "\nThat was neither a search nor an answer. Write <search>a query</search> to look something up, or "
    "<answer>the answer</answer> to finish.\n"
)

TEMPLATE = """\
Answer the question below. First reason about it inside <think> and </think>, and again whenever new information \
arrives. If you lack some knowledge, search for it by writing <search>a query</search>; the best results come back \
between <information> and </information>. Search as often as you need. Once you know enough, write only the answer, \
short and without explanation, inside <answer> and </answer>. Question: {question}
{documents}"""

_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_WELL_FORMED = re.compile(
    r"\s*(?:(?:<think>)?(?:(?!</?think>).)*</think>\s*)?"
    r"<(search|answer)>(?:(?!</?(?:search|answer)>).)*</\1>\s*",
    re.DOTALL,
)


class SearchR1Protocol:
    """The Search-R1 protocol in one of two modes; the generator gets all retrieved documents, each once, in order.

    Strict: this project's rules. Actions inside thoughts are ignored, and so is everything after the first complete
    search or answer. A turn is well formed if it is an optional thought and one action.
    Legacy: the first ``<search>`` or ``<answer>`` anywhere in the turn counts, cut after the first ``</search>``, else
    after the first ``</answer>``; the reply to an invalid turn is Search-R1's.
    In both modes an empty query is invalid, and an invalid turn gets a reply and uses up one search.
    """

    name = "search_r1"
    stop: tuple[str, ...] = ("</search>", "</answer>")

    def __init__(self, template: str | None = None, mode: Literal["strict", "legacy"] = "strict") -> None:
        """``template`` holds ``{question}`` and, if the prompt shows initial documents, ``{documents}``."""
        self.is_legacy = mode == "legacy"
        self.template = TEMPLATE if template is None else template
        self._tags = tags_in(self.template)
        self.rules = LoopRules(
            tag_kinds=TAG_KINDS, cuts_documents=not self.is_legacy, truncation_ends=not self.is_legacy
        )

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> GuardedText:
        """Fill the template; the documents are one information block, empty text if there are none."""
        documents = render_information_block(initial, self._tags) if initial else ""
        return fill_template(self.template, question, documents)

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Parse the first search or answer."""
        cut = _cut_legacy(text) if self.is_legacy else cut_after_action(text)
        match = _ACTION.search(cut if self.is_legacy else strip_thoughts(cut))
        if match is None:
            return self._invalid("neither a search nor an answer")
        well_formed = self.is_legacy or _WELL_FORMED.fullmatch(cut) is not None
        content = as_sendable(match[2]).strip()
        if match[1] == "answer":
            return ParsedTurn(Answer(content), well_formed=well_formed)
        if not content:
            return self._invalid("an empty query")
        if self.is_legacy:
            return ParsedTurn(Search((content,)))
        is_short = len(content) <= MAX_QUERY_CHARACTERS
        return ParsedTurn(Search((content[:MAX_QUERY_CHARACTERS],)), well_formed=well_formed and is_short)

    def _invalid(self, reason: str) -> ParsedTurn:
        reply = LEGACY_INVALID_REPLY if self.is_legacy else INVALID_REPLY
        return ParsedTurn(Invalid(reply, reason), well_formed=False)

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return ``\\n\\n<information>..</information>\\n\\n``, documents numbered from 1."""
        return render_legacy_observation(results) if self.is_legacy else render_observation(results, self._tags)

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Return every retrieved passage, initial ones included, each once, in the order seen."""
        return distinct_by_id([result.passage for block in blocks for result in block.results])


def cut_after_action(text: str) -> str:
    """Cut after the first closing tag of either action."""
    ends = [text.find(tag) + len(tag) for tag in SearchR1Protocol.stop if tag in text]
    return text[: min(ends)] if ends else text


def _cut_legacy(text: str) -> str:
    return cut_after(text, "</search>") if "</search>" in text else cut_after(text, "</answer>")
