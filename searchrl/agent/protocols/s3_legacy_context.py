"""Parses the documents for the generator out of a trajectory's text by s3's rules."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from searchrl.agent.protocols.document_text import render_documents
from searchrl.agent.protocols.s3_legacy_turn import MAX_DOCUMENT_NUMBER, cut_turn
from searchrl.agent.protocols.tags import find_numbers
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock

_BLOCK = re.compile(r"<information>(.*?)</information>", re.DOTALL)
_SELECTION = re.compile(r"<important_info>(.*?)</important_info>", re.DOTALL)
_HEADER = re.compile(r"Doc\s*\d+\s*\(\s*Title\s*:", re.IGNORECASE)
_TITLED_HEADER = re.compile(r'Doc\s*(\d+)\s*\(\s*Title\s*:\s*"?([^")]+)"?\)', re.IGNORECASE)


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


def assemble_from_text(transcript: Sequence[str], blocks: Sequence[InformationBlock]) -> tuple[Passage, ...]:
    """Return the documents of a transcript (see ``SearchProtocol.assemble_documents``) under s3's rules.

    Passages get the id of the passage of ``blocks`` with the same text, or with the same beginning if an observation
    was cut; text that matches no passage gets an id of the form ``unknown-<position>``.
    """
    prompt, *rest = transcript
    pieces = [cut_turn(piece) if index % 2 == 0 else piece for index, piece in enumerate(rest)]
    documents = assemble_documents(prompt.rpartition("<question>")[2] + "".join(pieces))
    known = _read_shown_documents(blocks)
    return tuple(
        Passage(_find_id(document, known) or f"unknown-{position}", document.title, document.text)
        for position, document in enumerate(documents, start=1)
    )


def assemble_documents(text: str) -> list[ReadDocument]:
    """Apply s3's selection rules to everything after the line that announces the question.

    - A selection belongs to the information block that begins last before it; a block's second selection is ignored.
    - A claimed block gives its documents whose numbers (1 to 8) were named, in document order, without a cap.
    - Then every block without a selection gives all its documents.
    - Documents with the same text, then with the same title and text, count once.
    """
    blocks = [_ReadBlock(match.start(), read_documents(match[1])) for match in _BLOCK.finditer(text)]
    for match in _SELECTION.finditer(text):
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
    return list({document.text: document for document in reversed(list(documents))}.values())[::-1]


def _read_shown_documents(blocks: Sequence[InformationBlock]) -> list[tuple[ReadDocument, str]]:
    """Return every passage of the blocks as ``read_documents`` parses it, with its id.

    Parsing loses part of a title with parentheses, so texts are compared after the same loss on both sides.
    """
    return [
        (document, result.passage.id)
        for block in blocks
        for result in block.results
        for document in read_documents(render_documents([result], exact_titles=True))[:1]
    ]


def _find_id(document: ReadDocument, known: Sequence[tuple[ReadDocument, str]]) -> str | None:
    same_title = [(shown.text, passage_id) for shown, passage_id in known if shown.title == document.title]
    exact = (passage_id for text, passage_id in same_title if text == document.text)
    cut = (passage_id for text, passage_id in same_title if document.text and text.startswith(document.text))
    return next(exact, None) or next(cut, None)
