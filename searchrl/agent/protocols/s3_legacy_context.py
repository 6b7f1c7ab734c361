"""Which documents does s3 read back from the text of a trajectory?"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from searchrl.agent.protocols.document_text import information_block
from searchrl.agent.protocols.s3_legacy_turn import MAX_DOCUMENT_NUMBER, cut_turn, initial_information
from searchrl.agent.protocols.tags import whole_numbers
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock

_BLOCK = re.compile(r"<information>(.*?)</information>", re.DOTALL)
_SELECTION = re.compile(r"<important_info>(.*?)</important_info>", re.DOTALL)
_HEADER = re.compile(r"Doc\s*(\d+)\s*\(Title:")
_TITLE = re.compile(r'\s*"?([^")]+)"?\)')


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document as found in the text."""

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

    Passages get the id of the passage of ``blocks`` that reads the same; text that no passage explains gets the id
    ``unknown``.
    """
    prompt, *rest = transcript
    pieces = [cut_turn(piece) if index % 2 == 0 else piece for index, piece in enumerate(rest)]
    documents = assemble_documents(prompt.rpartition("<question>")[2] + "".join(pieces))
    ids = _ids_by_text(blocks)
    return tuple(
        Passage(ids.get((document.title, document.text), "unknown"), document.title, document.text)
        for document in documents
    )


def assemble_documents(text: str) -> list[ReadDocument]:
    """Apply s3's selection rules to everything after the line that announces the question.

    - A selection belongs to the information block that begins last before it; a block's second selection is ignored.
    - A claimed block gives its documents whose numbers (1 to 8) were named, in document order; no cap.
    - Then every block that nobody claimed gives all its documents.
    - Documents with the same text, then with the same title and text, count once.
    """
    blocks = [_ReadBlock(match.start(), read_documents(match[1])) for match in _BLOCK.finditer(text)]
    for match in _SELECTION.finditer(text):
        block = next((block for block in reversed(blocks) if block.start < match.start()), None)
        if block is not None and block.selection is None:
            numbers = (number for number in whole_numbers(match[1]) if 1 <= number <= MAX_DOCUMENT_NUMBER)
            block.selection = frozenset(numbers)
    chosen = [
        document for block in blocks for document in block.documents if document.number in (block.selection or ())
    ]
    unclaimed = [document for block in blocks if block.selection is None for document in block.documents]
    return _distinct([*chosen, *unclaimed])


def read_documents(block: str) -> list[ReadDocument]:
    """Split a block at every ``Doc <n> (Title:``; a title ends at its first parenthesis or quotation mark."""
    headers = list(_HEADER.finditer(block))
    documents = []
    for index, header in enumerate(headers):
        end = headers[index + 1].start() if index + 1 < len(headers) else len(block)
        title = _TITLE.match(block, header.end(), end)
        if title is not None:
            number = whole_numbers(header[1])
            documents.append(ReadDocument(number[0], title[1].strip(), block[title.end() : end].strip()))
    return documents


def _distinct(documents: Iterable[ReadDocument]) -> list[ReadDocument]:
    """Drop repeated texts; that also drops every repeated pair of title and text."""
    return list({document.text: document for document in reversed(list(documents))}.values())[::-1]


def _ids_by_text(blocks: Sequence[InformationBlock]) -> dict[tuple[str, str], str]:
    ids: dict[tuple[str, str], str] = {}
    for block in blocks:
        for render in (information_block, initial_information):
            read = (document for part in _BLOCK.findall(render(block.results)) for document in read_documents(part))
            for document, result in zip(read, block.results, strict=False):
                ids.setdefault((document.title, document.text), result.passage.id)
    return ids
