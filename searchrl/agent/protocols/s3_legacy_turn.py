"""Parses one turn of a published s3 searcher by s3's rules."""

from collections.abc import Sequence

from searchrl.agent.protocol import Action, Finish, Invalid, ParsedTurn, Search
from searchrl.agent.protocols.document_text import DocumentForm, render_documents
from searchrl.agent.protocols.json_query import as_sendable, read_any_query
from searchrl.agent.protocols.s3_turn import TRUE_WORDS
from searchrl.agent.protocols.tags import cut_after, find_numbers, tag_content
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import SearchResult

INVALID_REPLY = (
    "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new "
    "search query between <query> and </query> tags in JSON format:\n<query>\n"
)
"""Part of the interface of s3's checkpoints, so byte for byte theirs. The open tag makes the next output a query."""

MAX_DOCUMENT_NUMBER = 8
"""The largest number that s3 accepts in a selection, whatever the number of documents; larger ones are ignored."""


def render_initial_information(results: Sequence[SearchResult]) -> GuardedText:
    """Render the first documents as s3's prompts do: tags on their own lines, a blank before the parenthesis."""
    lines = render_documents(results, DocumentForm.FIRST_DOCUMENTS, exact_titles=True)
    return GuardedText.join_parts("<information>\n", lines.strip(), "\n</information>")


def cut_turn(text: str) -> str:
    """Cut after the first ``</query>``, and restore the opening tag if ``INVALID_REPLY`` wrote it."""
    text = cut_after(text, "</query>")
    if "</query>" in text and "<query>" not in text:
        return f"<query>\n{text}"
    return text


def parse_legacy_turn(text: str) -> ParsedTurn:
    """Parse a turn: finishing has priority over a query; a turn with neither is invalid and gets a reply.

    Every turn that is not invalid is well formed. One deviation from s3: an empty query counts as invalid. s3 sends it
    to the retriever, but no search engine accepts one.
    """
    text = cut_turn(text)
    action = _read_action(text)
    return ParsedTurn(action, read_selection(text), not isinstance(action, Invalid))


def read_selection(text: str) -> tuple[int, ...] | None:
    """Return the numbers 1..8 of the first selection tag, each once; None without a tag."""
    content = tag_content(text, "important_info")
    if content is None:
        return None
    return tuple(number for number in dict.fromkeys(find_numbers(content)) if 1 <= number <= MAX_DOCUMENT_NUMBER)


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
