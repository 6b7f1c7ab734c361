"""Yields the rows of tables: parquet, CSV and TSV with a header, and DPR's TSV without one."""

import codecs
import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING

from searchrl.datasets.file_content import MAX_FILE_BYTES, MAX_ROW_BYTES, FileContent
from searchrl.datasets.row import Record, Row, canonical_key, describe
from searchrl.datasets.shapes import READ_KEYS
from searchrl.datasets.shapes.base import QUESTION_KEYS
from searchrl.errors import ConfigurationError, InvalidRequest, TooLarge

_DELIMITERS = ("\t", ",", ";")
_HEADERS = frozenset({*QUESTION_KEYS, "text", "prompt"})
_SUFFIXES = (".csv", ".tsv")
DPR_COLUMNS = ("question", "answers")

# By default the csv module refuses cells of more than 131,072 characters. The limit is one of the process.
csv.field_size_limit(MAX_ROW_BYTES)

BATCH_ROWS = 256
"""Rows that are Python objects at once. More rows take more memory (rows with documents are large), fewer rows take
more calls."""


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
            f"{content.path}, line 1: no column with questions, found {describe(cells[0])}; the first line must name "
            "the columns"
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
    rows = _rows(content, delimiter)
    if _is_row_of_dpr(delimiter, header):
        header = list(DPR_COLUMNS)
    else:
        next(rows)
    for number, cells in rows:
        if len(cells) != len(header):
            raise InvalidRequest(
                f"{content.path}, line {number}: needs {len(header)} cells, found {len(cells)}, the first "
                f"{describe(cells[0])}; a cell with a quotation mark, a line end or the separator in it must be quoted"
            )
        yield Record(f"line {number}", Row({name: cell or None for name, cell in zip(header, cells, strict=True)}))


def _rows(content: FileContent, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the line on which it begins."""
    lines = _Texts(content)
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        # A quoted cell can span lines, so a row is named by the line on which it begins.
        number = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidRequest(f"{content.path}, line {number}: not a readable table row: {error}") from error
        # Only inside a quoted cell does the reader ask for a line after the last one.
        if lines.ended:
            raise InvalidRequest(f"{content.path}, line {number}: not a readable table row: a quoted cell never ends")
        if any(cell.strip() for cell in cells):
            yield number, cells


def _header(content: FileContent) -> tuple[str, list[str]] | None:
    """Return the delimiter and cells of the first line; no delimiter if no column holds questions; None for JSON."""
    # The first line of JSON may be the complete file, so it is not read here.
    if content.begins_a_value():
        return None
    text = next((text for text in _Texts(content) if text.strip()), "").rstrip("\r\n")
    content.rewind()
    if text.lstrip()[:1] in ("", "[", "{"):
        return None
    # A header is recognized by a column of questions, not by the delimiter that occurs most: questions contain commas.
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


class _Texts:
    """The lines of a file as text.

    Attributes:
        ended: whether a line after the last one was asked for.
    """

    def __init__(self, content: FileContent) -> None:
        self._path = content.path
        self._lines = enumerate(content.lines(), start=1)
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            number, line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        # Excel writes a byte order mark before UTF-8 text.
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"{self._path}, line {number}: not UTF-8 text: {error.reason} at byte {error.start}"
            ) from error


if TYPE_CHECKING:
    from pyarrow import parquet


def parquet_records(content: FileContent) -> Iterator[Record]:
    """Read the rows in batches.

    Raises:
        InvalidRequest: the file is damaged, or a value in it cannot be read.
        TooLarge: its columns unpack to more than ``MAX_FILE_BYTES``.
        ConfigurationError: pyarrow is not installed.
    """
    try:
        # Imported here, because reading JSON and tables must work without pyarrow.
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{content.path} is a parquet file, which needs pyarrow: pip install pyarrow"
        ) from error
    number = 0
    try:
        file = parquet.ParquetFile(content.stream)
        _check_size(content, file)
        # Other columns are never unpacked; they may hold documents, the largest part of some files.
        columns = [name for name in file.schema_arrow.names if canonical_key(name) in READ_KEYS]
        if not columns:
            raise InvalidRequest(
                f"{content.path} has no column with questions, found the columns {', '.join(file.schema_arrow.names)}"
            )
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            # By default pyarrow returns a map column as a list of pairs, which no shape reads. "lossy" takes the last
            # of equal keys.
            for values in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield Record(f"row {number}", Row(values))
    except (ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise InvalidRequest(f"{content.path}, after row {number}: not a readable parquet file: {error}") from error


def _check_size(content: FileContent, file: "parquet.ParquetFile") -> None:
    metadata = file.metadata
    # total_byte_size is the unpacked size. It stands in the footer, so a file that is too large is refused before any
    # page is unpacked.
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"{content.path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB")
