"""Reads one turn of a published s3 searcher."""

from collections.abc import Sequence

from searchrl.agent.protocol import Action, Finish, Invalid, ParsedTurn, Search
from searchrl.agent.protocols.document_text import DocumentForm, document_lines
from searchrl.agent.protocols.json_query import as_sendable, read_any_query
from searchrl.agent.protocols.s3_turn import TRUE_WORDS
from searchrl.agent.protocols.tags import cut_after, tag_content, whole_numbers
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import SearchResult

INVALID_REPLY = (
    "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new "
    "search query between <query> and </query> tags in JSON format:\n<query>\n"
)
"""Part of the interface of s3's checkpoints, so byte for byte theirs. The open tag makes the next output a query."""

MAX_DOCUMENT_NUMBER = 8


def initial_information(results: Sequence[SearchResult]) -> GuardedText:
    """The first documents as s3's prompts show them: tags on their own lines, a blank before the parenthesis."""
    lines = document_lines(results, DocumentForm.FIRST_DOCUMENTS, exact_titles=True)
    return GuardedText.join_parts("<information>\n", lines.strip(), "\n</information>")


def cut_turn(text: str) -> str:
    """Cut after the first ``</query>``; give back the opening tag that ``INVALID_REPLY`` took away."""
    text = cut_after(text, "</query>")
    if "</query>" in text and "<query>" not in text:
        return f"<query>\n{text}"
    return text


def parse_legacy_turn(text: str) -> ParsedTurn:
    """Finishing wins, then a query, else the turn is invalid and answered; every readable turn is well formed.

    One deviation: s3 sends an empty query to the retriever; no search engine takes one, so it counts as invalid.
    """
    text = cut_turn(text)
    action = _read_action(text)
    return ParsedTurn(action, read_selection(text), not isinstance(action, Invalid))


def read_selection(text: str) -> tuple[int, ...] | None:
    """Return the numbers 1..8 of the first selection tag, each once; None without a tag."""
    content = tag_content(text, "important_info")
    if content is None:
        return None
    return tuple(number for number in dict.fromkeys(whole_numbers(content)) if 1 <= number <= MAX_DOCUMENT_NUMBER)


def _read_action(text: str) -> Action:
    complete = tag_content(text, "search_complete")
    if complete is not None and complete.strip().lower() in TRUE_WORDS:
        return Finish()
    content = tag_content(text, "query")
    if content is None:
        return Invalid(INVALID_REPLY, "neither a query nor the end of the search")
    query = as_sendable(read_any_query(content.strip()))
    if not query.strip():
        return Invalid(INVALID_REPLY, "an empty query")
    return Search((query,))
