"""Reads queries in the form of BEIR and MS MARCO (``_id``, ``text``) and their relevance judgments (qrels)."""

import csv
import gzip
import io
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path

from searchrl.datasets.row import BadRow, Row, describe
from searchrl.datasets.shapes.base import COMMON_KEYS, QUESTION_KEYS, RowFields, common_fields, text_of
from searchrl.errors import InvalidRequest

logger = logging.getLogger(__name__)

QRELS_FILES = (
    "qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv", "qrels.tsv", "qrels.tsv.gz", "qrels/test.tsv.gz",
)  # fmt: skip
"""Paths of qrels beside the queries; the first that exists counts, so a test split has priority over the others."""
MAX_QRELS_BYTES = 256 << 20
"""The table is read into memory in one piece; at some 20 bytes a row this is over ten million judgments."""

Judgments = Mapping[str, tuple[str, ...]]


class BeirShape:
    """A query: its text is in ``text``, and it has no answers."""

    name = "beir"
    keys: frozenset[str] = COMMON_KEYS | {"text"}

    def matches(self, row: Row) -> bool:
        return "text" in row and not any(key in row for key in QUESTION_KEYS)

    def read(self, row: Row) -> RowFields:
        text = text_of(row, ("text",))
        if not text:
            raise BadRow(f'needs a non-empty "text", found {describe(row.get("text"))}')
        fields = common_fields(row, text)
        fields.is_question_only = not fields.answers
        return fields


def find_qrels(questions: Path) -> Path | None:
    """Return the path of the judgments beside a file of queries; None if there are none."""
    return next((path for name in QRELS_FILES if (path := questions.parent / name).is_file()), None)


def read_qrels(path: Path) -> tuple[Judgments, bytes]:
    """Return the relevant passages of each query, most relevant first, and the bytes of the file.

    Rows are query, passage, score (BEIR, with a header) or query, 0, passage, score (TREC).

    Raises:
        InvalidRequest: a row has another form; names the line.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # One byte more than allowed shows that the file is too large without unpacking all of it.
            content = file.read(MAX_QRELS_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    if len(content) > MAX_QRELS_BYTES:
        raise InvalidRequest(f"{path} is over {MAX_QRELS_BYTES >> 20} MiB")
    found_scores: dict[str, dict[str, float]] = {}
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        # In qrels a quotation mark is an ordinary character. TREC's files separate cells by any white space.
        cells = next(csv.reader([line.rstrip("\r\n")], delimiter="\t", quoting=csv.QUOTE_NONE))
        cells = cells if len(cells) > 1 else line.split()
        if len(cells) not in (3, 4):
            raise InvalidRequest(
                f"{path}, line {number}: needs query, passage and score, found {describe(line.strip())}"
            )
        # Counted from both ends, this reads three cells and TREC's four, whose second one is unused.
        query, passage, score = cells[0], cells[-2], cells[-1]
        try:
            value = float(score)
        except ValueError as error:
            if number == 1:  # the header
                continue
            raise InvalidRequest(f"{path}, line {number}: the score is not a number: {score!r}") from error
        if value > 0:
            found_scores.setdefault(query, {})[passage] = value
    # The sort is stable: equally relevant passages keep the order of the file.
    return {
        query: tuple(sorted(scores, key=lambda passage: -scores[passage])) for query, scores in found_scores.items()
    }, content
