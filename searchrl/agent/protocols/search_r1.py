"""Implements the search protocol of Search-R1 models under this project's strict rules."""

import re
from collections.abc import Sequence

from searchrl.agent.protocols.base import Answer, Invalid, LoopRules, ParsedTurn, Search
from searchrl.agent.protocols.parsing import MAX_QUERY_CHARACTERS, as_sendable
from searchrl.agent.rendering import distinct_by_id, fill_template, render_information_block, render_observation
from searchrl.agent.types import Limits
from searchrl.agent.untrusted_text import tags_in
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.thoughts import strip_thoughts
from searchrl.domain.trajectory import InformationBlock, TokenKind

TAG_KINDS = {"think": TokenKind.THINK, "search": TokenKind.QUERY, "answer": TokenKind.ANSWER}

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

ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
# As in s3: a thought may lack the opening tag that the chat template wrote. An action contains no tag of an action.
_WELL_FORMED = re.compile(
    r"\s*(?:(?:<think>)?(?:(?!</?think>).)*</think>\s*)?"
    r"<(search|answer)>(?:(?!</?(?:search|answer)>).)*</\1>\s*",
    re.DOTALL,
)


class SearchR1Prompt:
    """What both sets of rules share: the template, the prompt and where sampling stops."""

    stop: tuple[str, ...] = ("</search>", "</answer>")

    def __init__(self, template: str | None = None, limits: Limits | None = None) -> None:
        """``template`` holds ``{question}`` and, if the prompt shows initial documents, ``{documents}``."""
        self.template = TEMPLATE if template is None else template
        self._tags = tags_in(self.template)

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> GuardedText:
        """Fill the template; the documents are one information block, empty text if there are none."""
        documents = render_information_block(initial, self._tags) if initial else ""
        return fill_template(self.template, question, documents)


class SearchR1Protocol(SearchR1Prompt):
    """The Search-R1 protocol under this project's rules; the generator gets all documents, each once, in order.

    Actions inside thoughts are ignored, and so is everything after the first complete search or answer. A turn is well
    formed if it is an optional thought and one action. An empty query is invalid, and an invalid turn gets a reply and
    uses up one search.
    """

    rules = LoopRules(TAG_KINDS)

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Parse the first search or answer."""
        cut = _cut_after_action(text)
        # The action is read outside thoughts, but the form is checked on the complete turn, thoughts included.
        match = ACTION.search(strip_thoughts(cut))
        if match is None:
            return ParsedTurn(Invalid(INVALID_REPLY, "neither a search nor an answer"), well_formed=False)
        well_formed = _WELL_FORMED.fullmatch(cut) is not None
        content = as_sendable(match[2]).strip()
        if match[1] == "answer":
            return ParsedTurn(Answer(content), well_formed=well_formed)
        if not content:
            return ParsedTurn(Invalid(INVALID_REPLY, "an empty query"), well_formed=False)
        is_short = len(content) <= MAX_QUERY_CHARACTERS
        return ParsedTurn(Search((content[:MAX_QUERY_CHARACTERS],)), well_formed=well_formed and is_short)

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return ``\\n\\n<information>..</information>\\n\\n``, documents numbered from 1."""
        return render_observation(results, self._tags)

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Return every retrieved passage, initial ones included, each once, in the order seen."""
        return distinct_by_id([result.passage for block in blocks for result in block.results])


def _cut_after_action(text: str) -> str:
    """Cut after the first closing tag of either action."""
    ends = [text.find(tag) + len(tag) for tag in SearchR1Protocol.stop if tag in text]
    # The stop strings end a generation at the first of these tags, but the token that completes one can hold more text.
    return text[: min(ends)] if ends else text
