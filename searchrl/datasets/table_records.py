"""Yields the rows of a text table: CSV and TSV with a header, and DPR's TSV without one."""

import codecs
import csv
from collections.abc import Iterator

from searchrl.datasets.file_content import FileContent
from searchrl.datasets.json_records import Record
from searchrl.datasets.row import Row, canonical_key, describe
from searchrl.datasets.shapes.base import QUESTION_KEYS
from searchrl.errors import InvalidRequest

_DELIMITERS = ("\t", ",", ";")
_HEADERS = frozenset({*QUESTION_KEYS, "text", "prompt"})
_SUFFIXES = (".csv", ".tsv")
DPR_COLUMNS = ("question", "answers")


def is_table(content: FileContent) -> bool:
    """Return whether the first line is the header of a table with questions, or a row of DPR's.

    Raises:
        InvalidRequest: the file is named .csv or .tsv, but no column holds questions.
    """
    head = _header(content)
    if head is None:
        return False
    delimiter, cells = head
    if delimiter:
        return True
    if content.path.name.removesuffix(".gz").endswith(_SUFFIXES):
        raise InvalidRequest(
            f"{content.path}, line 1: no column with questions, found {', '.join(map(repr, cells[:12]))}; the first "
            "line must name the columns"
        )
    return False


def table_records(content: FileContent) -> Iterator[Record]:
    """Read the rows; an empty cell is a missing value, and a cell holds a list as JSON or Python text.

    Raises:
        InvalidRequest: the file is not UTF-8, or a row has more or fewer cells than the header; names the line.
    """
    head = _header(content)
    assert head is not None
    delimiter, header = head
    rows = csv.reader(_texts(content), delimiter=delimiter)
    if _is_row_of_dpr(delimiter, header):
        header = list(DPR_COLUMNS)
    else:
        next(rows)
    while True:
        number = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidRequest(f"{content.path}, line {number}: not a readable table row: {error}") from error
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InvalidRequest(
                f"{content.path}, line {number}: needs {len(header)} cells, found {len(cells)}, the first "
                f"{describe(cells[0])}; a cell with a quotation mark, a line end or the separator in it must be quoted"
            )
        yield Record(f"line {number}", Row({name: cell or None for name, cell in zip(header, cells, strict=True)}))


def _header(content: FileContent) -> tuple[str, list[str]] | None:
    """Return the delimiter and cells of the first line; no delimiter if no column holds questions; None for JSON."""
    line = content.head().removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n").split(b"\n", 1)[0]
    if line.lstrip()[:1] in (b"", b"[", b"{"):
        return None
    text = line.decode("utf-8", "replace").rstrip("\r")
    for delimiter in _DELIMITERS:
        cells = _cells(text, delimiter)
        if len(cells) > 1 and (_HEADERS & set(map(canonical_key, cells)) or _is_row_of_dpr(delimiter, cells)):
            return delimiter, cells
    return "", [text]


def _is_row_of_dpr(delimiter: str, cells: list[str]) -> bool:
    """Return whether the cells are a question and a list: ``who wrote it?<TAB>['Vella Norr', 'V. Norr']``."""
    return delimiter == "\t" and len(cells) == 2 and cells[1][:1] == "[" and cells[1].rstrip()[-1:] == "]"


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _texts(content: FileContent) -> Iterator[str]:
    is_first = True
    for number, line in enumerate(content.lines(), start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if is_first and not line.strip():
            continue
        is_first = False
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"{content.path}, line {number}: not UTF-8 text: {error.reason} at byte {error.start}"
            ) from error
