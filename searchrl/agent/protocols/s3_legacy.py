"""Implements the search protocol of s3's published searchers, defects included."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from searchrl.agent.protocols.base import Action, Finish, Invalid, LoopRules, ParsedTurn, Search
from searchrl.agent.protocols.parsing import as_sendable, cut_after, find_numbers, read_any_query, tag_content
from searchrl.agent.protocols.s3 import TAG_KINDS, TRUE_WORDS
from searchrl.agent.rendering import DocumentForm, fill_template, render_documents, render_legacy_observation
from searchrl.agent.types import Limits
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock

INVALID_REPLY = (
    "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new "
    "search query between <query> and </query> tags in JSON format:\n<query>\n"
)
"""Part of the interface of s3's checkpoints, so byte for byte theirs. The open tag makes the next output a query."""

MAX_DOCUMENT_NUMBER = 8
"""The largest number that s3 accepts in a selection, whatever the number of documents; larger ones are ignored."""

# They find what s3's own code finds, defects included: the checkpoints were rewarded for these documents.
_BLOCK = re.compile(r"<information>(.*?)</information>", re.DOTALL)
_SELECTION = re.compile(r"<important_info>(.*?)</important_info>", re.DOTALL)
_HEADER = re.compile(r"Doc\s*\d+\s*\(\s*Title\s*:", re.IGNORECASE)
_TITLED_HEADER = re.compile(r'Doc\s*(\d+)\s*\(\s*Title\s*:\s*"?([^")]+)"?\)', re.IGNORECASE)

# The wording is this project's own. A checkpoint that was trained with other words needs its own template.
TEMPLATE = """\
You are a search copilot. A generator model will answer the question below from the documents that you gather; you \
collect them and leave the answering to it.

You begin with the question and, in <information>, the documents that a first search found. If they suffice, write \
<search_complete>True</search_complete> at once and stop. Otherwise repeat:
- write a search query as JSON: <query>{"query": "words to search for"}</query>;
- read the documents that come back between <information> and </information>;
- name the ones that matter, by number and at most 3: <important_info>[1, 3]</important_info>;
- say whether the search is done: <search_complete>True</search_complete> or <search_complete>False</search_complete>;
- after False, write the next query.
Use <think>...</think> whenever you want to reason; nobody else reads it. Only the documents that you name in \
<important_info> reach the generator.

A session looks like this:
<query>{"query": "composer of the opera Aurelia"}</query>
(documents)
<important_info>[1]</important_info>
<search_complete>False</search_complete>
<query>{"query": "Marta Lindqvist place of birth"}</query>
(documents)
<important_info>[2]</important_info>
<search_complete>True</search_complete>

The question and the first documents:
<question>
{question}
</question>
{documents}
"""


class S3LegacyProtocol:
    """The s3 protocol under the rules with which s3's published searchers were trained.

    The documents for the generator are parsed out of the transcript's text, as s3 does. Two differences are on
    purpose: sampled tokens are kept rather than tokenized again, so generation stops at ``</query>``, and a full
    context ends the rollout rather than losing its beginning.
    """

    stop: tuple[str, ...] = ("</query>",)
    rules = LoopRules(TAG_KINDS, cuts_documents=False, truncation_ends=False)

    def __init__(self, template: str | None = None, limits: Limits | None = None) -> None:
        """``template`` is as for ``S3Protocol``; no limit changes these rules."""
        self.template = TEMPLATE if template is None else template

    def render_prompt(self, question: str, initial: Sequence[SearchResult]) -> GuardedText:
        """Fill the template as s3's prompts do: tags on their own lines, a blank before the parenthesis."""
        if not initial:
            return fill_template(self.template, question, "")
        lines = render_documents(initial, DocumentForm.FIRST_DOCUMENTS, exact_titles=True)
        documents = GuardedText.join_parts("<information>\n", lines.strip(), "\n</information>")
        return fill_template(self.template, question, documents)

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        """Parse a turn: finishing has priority over a query; a turn with neither is invalid and gets a reply.

        Every turn that is not invalid is well formed. One deviation from s3: an empty query counts as invalid. s3
        sends it to the retriever, but no search engine accepts one.
        """
        text = _cut_turn(text)
        action = _read_action(text)
        return ParsedTurn(action, _read_selection(text), not isinstance(action, Invalid))

    def render_results(self, results: Sequence[Sequence[SearchResult]]) -> GuardedText:
        """Return ``\\n\\n<information>..</information>\\n\\n``, documents numbered from 1."""
        return render_legacy_observation(results)

    def assemble_documents(self, blocks: Sequence[InformationBlock], transcript: Sequence[str]) -> tuple[Passage, ...]:
        """Return the documents of a transcript (see ``SearchProtocol.assemble_documents``) under s3's rules.

        Passages get the id of the passage of ``blocks`` with the same text, or with the same beginning if an
        observation was cut; text that matches no passage gets an id of the form ``unknown-<position>``.
        """
        prompt, *rest = transcript
        # Turns and observations alternate. s3 cuts turns only, and reads nothing before the question: the prompt's
        # instruction shows documents in its example.
        pieces = [_cut_turn(piece) if index % 2 == 0 else piece for index, piece in enumerate(rest)]
        documents = assemble_from_text(prompt.rpartition("<question>")[2] + "".join(pieces))
        known = _read_shown_documents(blocks)
        return tuple(
            Passage(_find_id(document, known) or f"unknown-{position}", document.title, document.text)
            for position, document in enumerate(documents, start=1)
        )


def _cut_turn(text: str) -> str:
    """Cut after the first ``</query>``, and restore the opening tag if ``INVALID_REPLY`` wrote it."""
    text = cut_after(text, "</query>")
    if "</query>" in text and "<query>" not in text:
        return f"<query>\n{text}"
    return text


def _read_selection(text: str) -> tuple[int, ...] | None:
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


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document parsed from the text."""

    number: int
    title: str
    text: str


@dataclass(slots=True)
class _ReadBlock:
    start: int
    documents: list[ReadDocument] = field(default_factory=list)
    selection: frozenset[int] | None = None


def assemble_from_text(text: str) -> list[ReadDocument]:
    """Apply s3's selection rules to everything after the line that announces the question.

    - A selection belongs to the information block that begins last before it; a block's second selection is ignored.
    - A claimed block gives its documents whose numbers (1 to 8) were named, in document order, without a cap.
    - Then every block without a selection gives all its documents.
    - Documents with the same text, then with the same title and text, count once.
    """
    blocks = [_ReadBlock(match.start(), read_documents(match[1])) for match in _BLOCK.finditer(text)]
    for match in _SELECTION.finditer(text):
        # An earlier block that was never claimed stays unclaimed: a selection after the next search does not reach back
        # to it.
        block = next((block for block in reversed(blocks) if block.start < match.start()), None)
        if block is not None and block.selection is None:
            numbers = (number for number in find_numbers(match[1]) if 1 <= number <= MAX_DOCUMENT_NUMBER)
            block.selection = frozenset(numbers)
    chosen = [
        document for block in blocks for document in block.documents if document.number in (block.selection or ())
    ]
    unclaimed = [document for block in blocks if block.selection is None for document in block.documents]
    return _distinct([*chosen, *unclaimed])


def read_documents(block: str) -> list[ReadDocument]:
    """Split a block at every ``Doc <n> (Title:``; a title ends at its first parenthesis or quotation mark.

    A header whose title cannot be read this way is not a document, but it ends the document before it.
    """
    documents = []
    header = _TITLED_HEADER.search(block)
    while header is not None:
        following = _HEADER.search(block, header.end())
        end = following.start() if following else len(block)
        numbers = find_numbers(header[1])
        documents.append(ReadDocument(numbers[0], header[2].strip(), block[header.end() : end].strip()))
        header = _TITLED_HEADER.search(block, end)
    return documents


def _distinct(documents: Iterable[ReadDocument]) -> list[ReadDocument]:
    """Drop repeated texts; that also drops every repeated pair of title and text."""
    # A dict keeps the place of a key's first entry and the value of its last. On the reversed list, a repeated text
    # therefore gets the place of its last document and the title of its first: a, b, a -> b, a.
    return list({document.text: document for document in reversed(list(documents))}.values())[::-1]


def _read_shown_documents(blocks: Sequence[InformationBlock]) -> list[tuple[ReadDocument, str]]:
    """Return every passage of the blocks as ``read_documents`` parses it, with its id.

    Parsing loses part of a title with parentheses, so texts are compared after the same loss on both sides.
    """
    return [
        (document, result.passage.id)
        for block in blocks
        for result in block.results
        # The slice is for titles that cannot be read, such as an empty one: they give no document at all.
        for document in read_documents(render_documents([result], exact_titles=True))[:1]
    ]


def _find_id(document: ReadDocument, known: Sequence[tuple[ReadDocument, str]]) -> str | None:
    same_title = [(shown.text, passage_id) for shown, passage_id in known if shown.title == document.title]
    exact = (passage_id for text, passage_id in same_title if text == document.text)
    # An observation that was too long has lost its end, and with it the end of its last document's text.
    cut = (passage_id for text, passage_id in same_title if document.text and text.startswith(document.text))
    return next(exact, None) or next(cut, None)
