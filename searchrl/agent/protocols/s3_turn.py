"""Parses one turn of an s3 searcher by this project's strict rules."""

import re
from dataclasses import dataclass

from searchrl.agent.protocol import Action, Finish, Invalid, ParsedTurn, Search
from searchrl.agent.protocols.json_query import as_sendable, read_any_query, read_query
from searchrl.agent.protocols.tags import cut_after, find_numbers, tag_content
from searchrl.domain.thoughts import strip_thoughts
from searchrl.domain.trajectory import InformationBlock

TRUE_WORDS = frozenset({"true", "yes", "1", "y"})
"""Contents of ``<search_complete>`` that end the search; anything else continues it."""
MAX_QUERY_CHARACTERS = 1000
"""A longer query is cut and makes the turn not well formed. Without a bound a policy could send its complete turn,
hundreds of tokens, to the retriever as one query."""

_WELL_FORMED = re.compile(
    r"\s*(?:(?:<think>)?(?:(?!</?think>).)*</think>\s*)?"
    r"(?:<important_info>\s*\[(?P<selection>[0-9,\s]*)\]\s*</important_info>\s*)?"
    r"<search_complete>\s*(?P<complete>true|false)\s*</search_complete>\s*"
    r"(?:<query>(?P<query>.*)</query>\s*)?",
    re.DOTALL | re.IGNORECASE,
)
_NUMBER_LIST = re.compile(r"\s*(?:[0-9]+\s*(?:,\s*[0-9]+\s*)*)?")


@dataclass(frozen=True, slots=True)
class _Selection:
    """The valid positions of a selection, and whether everything that was written was valid."""

    positions: tuple[int, ...] | None
    is_exact: bool


def parse_strict_turn(text: str, latest_block: InformationBlock | None, max_selected: int) -> ParsedTurn:
    """Parse a turn; tolerant about the action, strict about ``well_formed``.

    Finishing has priority over a query in the same turn. A query that is not the JSON object is searched verbatim. A
    turn with neither is invalid and ends the rollout.
    """
    text = cut_after(text, "</query>")
    visible = strip_thoughts(text)
    selection = _read_selection(visible, latest_block, max_selected)
    action = _read_action(visible)
    well_formed = selection.is_exact and _is_well_formed(text)
    return ParsedTurn(action, selection.positions, well_formed and not isinstance(action, Invalid))


def _read_action(visible: str) -> Action:
    complete = tag_content(visible, "search_complete")
    if complete is not None and complete.strip().lower() in TRUE_WORDS:
        return Finish()
    content = tag_content(visible, "query")
    if content is None:
        return Invalid(None, "neither a query nor the end of the search")
    query = as_sendable(read_query(content) or read_any_query(content)).strip()
    if not query:
        return Invalid(None, "an empty query")
    return Search((query[:MAX_QUERY_CHARACTERS],))


def _read_selection(visible: str, latest_block: InformationBlock | None, max_selected: int) -> _Selection:
    content = tag_content(visible, "important_info")
    if content is None:
        return _Selection(None, latest_block is None)
    numbers = find_numbers(content)
    if latest_block is None:
        return _Selection(None, not numbers)
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
