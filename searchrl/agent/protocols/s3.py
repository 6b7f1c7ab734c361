"""Implements the search protocol of s3 searchers under this project's strict rules."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.agent.protocols.base import Action, Finish, Invalid, LoopRules, ParsedTurn, Search
from searchrl.agent.protocols.parsing import (
    MAX_QUERY_CHARACTERS,
    as_sendable,
    cut_after,
    find_numbers,
    read_any_query,
    read_query,
    tag_content,
)
from searchrl.agent.rendering import distinct_by_id, fill_template, render_information_block, render_observation
from searchrl.agent.types import Limits
from searchrl.agent.untrusted_text import tags_in
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.thoughts import strip_thoughts
from searchrl.domain.trajectory import InformationBlock, TokenKind

TAG_KINDS = {"think": TokenKind.THINK, "query": TokenKind.QUERY, "important_info": TokenKind.SELECTION}
TRUE_WORDS = frozenset({"true", "yes", "1", "y"})
"""Contents of ``<search_complete>`` that end the search; anything else continues it."""

# A thought may lack its opening tag, because the chat templates of reasoning models write it into the prompt. The
# negative look-aheads keep one thought from running over the tags of another.
_WELL_FORMED = re.compile(
    r"\s*(?:(?:<think>)?(?:(?!</?think>).)*</think>\s*)?"
    r"(?:<important_info>\s*\[(?P<selection>[0-9,\s]*)\]\s*</important_info>\s*)?"
    r"<search_complete>\s*(?P<complete>true|false)\s*</search_complete>\s*"
    r"(?:<query>(?P<query>.*)</query>\s*)?",
    re.DOTALL | re.IGNORECASE,
)
_NUMBER_LIST = re.compile(r"\s*(?:[0-9]+\s*(?:,\s*[0-9]+\s*)*)?")

# The wording is this project's own. A checkpoint that was trained with other words needs its own template.
TEMPLATE = """\
You gather evidence for another model, the generator, which will answer the question below. You do not answer it \
yourself. The generator sees only the documents that you select.

In every turn write these parts, in this order:
1. optionally <think>...</think>: your notes, which nobody reads;
2. <important_info>[numbers]</important_info>: the numbers of the documents in the latest <information> block that the \
generator needs, at most {max_selected}, most useful first; [] if none of them helps;
3. <search_complete>True</search_complete> as soon as the selected documents suffice to answer the question, \
otherwise <search_complete>False</search_complete>;
4. only if the search is not complete: <query>{"query": "words to search for"}</query>, one new query as JSON.

After a query you receive the documents it found in a new <information> block, numbered from 1. Ask for what is still \
missing, one fact at a time, and use names that you have read in the documents.

An example of three turns:
<important_info>[2]</important_info><search_complete>False</search_complete>\
<query>{"query": "composer of the opera Aurelia"}</query>
<information>Doc 1(Title: "Aurelia") ...</information>
<important_info>[1]</important_info><search_complete>False</search_complete>\
<query>{"query": "Marta Lindqvist place of birth"}</query>
<information>Doc 1(Title: "Marta Lindqvist") ...</information>
<important_info>[1]</important_info><search_complete>True</search_complete>

Now the question.
<question>
{question}
</question>
{documents}
"""


class S3Protocol:
    """The s3 protocol under this project's rules.

    A turn is ``[<think>..</think>] [<important_info>[..]</important_info>]
    <search_complete>True|False</search_complete> [<query>{"query": ".."}</query>]``. White space between the parts is
    allowed. The query is present if and only if the search is not complete, the selection if and only if there are
    documents to select from. A selection claims the latest block and keeps the order in which it was written. Numbers
    out of range, repeated, or beyond ``max_selected`` are dropped, and the turn is then not well formed. A block with
    an empty selection contributes nothing. Unclaimed blocks contribute only if no block was ever claimed; then every
    document does, in order, which is naive RAG. Passages are deduplicated by id. An unreadable turn ends the rollout.
    """

    stop: tuple[str, ...] = ("</query>",)
    rules = LoopRules(TAG_KINDS)

    def __init__(self, template: str | None = None, limits: Limits | None = None) -> None:
        """``template`` holds ``{question}`` and, if the prompt shows initial documents, ``{documents}``."""
        self.max_selected = (limits or Limits()).max_selected
        self.template = TEMPLATE.replace("{max_selected}", str(self.max_selected)) if template is None else template
        self._tags = tags_in(self.template)

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> GuardedText:
        """Fill the template; the documents are one information block, empty text if there are none."""
        documents = render_information_block(initial, self._tags) if initial else ""
        return fill_template(self.template, question, documents)

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Parse a turn; tolerant about the action, strict about ``well_formed``.

        Finishing has priority over a query in the same turn. A query that is not the JSON object is searched verbatim.
        A turn with neither is invalid and ends the rollout.
        """
        # An engine stops after the token that completes the stop string, and that token can hold more text.
        text = cut_after(text, "</query>")
        # Actions are read outside thoughts only, but the form is checked on the complete turn, thoughts included.
        visible = strip_thoughts(text)
        selection = _read_selection(visible, latest_block, self.max_selected)
        action = _read_action(visible)
        well_formed = selection.is_exact and _is_well_formed(text)
        return ParsedTurn(action, selection.positions, well_formed and not isinstance(action, Invalid))

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return ``\\n\\n<information>..</information>\\n\\n``, documents numbered from 1."""
        return render_observation(results, self._tags)

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Return the selected passages; all passages if nothing was ever selected."""
        claimed = [block for block in blocks if block.selection is not None]
        if not claimed:
            return distinct_by_id([result.passage for block in blocks for result in block.results])
        return distinct_by_id(
            [block.results[position - 1].passage for block in claimed for position in block.selection or ()]
        )


@dataclass(frozen=True, slots=True)
class _Selection:
    """The valid positions of a selection, and whether everything that was written was valid."""

    positions: tuple[int, ...] | None
    is_exact: bool


def _read_action(visible: str) -> Action:
    complete = tag_content(visible, "search_complete")
    if complete is not None and complete.strip().lower() in TRUE_WORDS:
        return Finish()
    content = tag_content(visible, "query")
    if content is None:
        return Invalid(None, "neither a query nor the end of the search")
    # The strict reading first: it accepts blanks around the key, with which the lenient one would search for the JSON
    # text itself.
    query = as_sendable(read_query(content) or read_any_query(content)).strip()
    if not query:
        return Invalid(None, "an empty query")
    return Search((query[:MAX_QUERY_CHARACTERS],))


def _read_selection(visible: str, latest_block: InformationBlock | None, max_selected: int) -> _Selection:
    content = tag_content(visible, "important_info")
    if content is None:
        return _Selection(None, latest_block is None)
    numbers = find_numbers(content)
    if latest_block is None:  # nothing was shown yet: only an empty selection is correct
        return _Selection(None, not numbers)
    # dict.fromkeys drops repeated numbers and keeps their order, which is the searcher's ranking.
    known = [number for number in dict.fromkeys(numbers) if 1 <= number <= len(latest_block.results)]
    kept = tuple(known[:max_selected])
    return _Selection(kept, list(kept) == numbers)


def _is_well_formed(text: str) -> bool:
    match = _WELL_FORMED.fullmatch(text)
    if match is None:
        return False
    if match["selection"] is not None and not _NUMBER_LIST.fullmatch(match["selection"]):
        return False
    is_complete = match["complete"].lower() == "true"
    if is_complete or match["query"] is None:
        return is_complete and match["query"] is None
    query = read_query(match["query"])
    return query is not None and len(query) <= MAX_QUERY_CHARACTERS and as_sendable(query) == query
