"""Yields the records of JSON lines, of one JSON array, and of one JSON object that holds records."""

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from searchrl.datasets.file_content import FileContent
from searchrl.datasets.row import BadRow, Row, describe
from searchrl.datasets.shapes.nested import records_of_object
from searchrl.errors import InvalidRequest


class Record(NamedTuple):
    """One row and its place in the file: "line 3", "entry 3" or "row 3", counted from 1."""

    place: str
    row: Row


def json_records(content: FileContent) -> Iterator[Record]:
    """Read the records of a file in any of the three layouts.

    The first line decides between them. If it is not a complete JSON value, or is the only line, the file is one JSON
    value; otherwise it is JSON lines, which are read one by one.

    Raises:
        InvalidRequest: the file is not UTF-8 or not JSON, or an entry is not an object; names the place.
    """
    lines = enumerate(content.lines(), start=1)
    number, first = next(((number, line) for number, line in lines if _strip_line(line, number)), (0, b""))
    if not number:
        return
    text = _strip_line(first, number)
    try:
        value = _parse(text)
    except BadRow as error:
        yield from _multiline_records(content, text, number, error)
        return
    second = next(((number, line) for number, line in lines if line.strip()), None)
    if second is None and isinstance(value, list | dict):
        yield from _records_of_value(content, value, number)
        return
    yield _record(content, number, value)
    if second is not None:
        yield _record(content, second[0], _line_value(content, *second))
    for number, line in lines:
        if line.strip():
            yield _record(content, number, _line_value(content, number, line))


def _multiline_records(content: FileContent, start: bytes, number: int, error: BadRow) -> Iterator[Record]:
    """Yield the records of a JSON value that spans lines; ``error`` is that of its first line alone."""
    if start[:1] not in b"[{":
        raise InvalidRequest(f"{content.path}, line {number}: {error}")
    rest = content.rest()
    try:
        value = _parse(start + b"\n" + rest)
    except BadRow as complete_error:
        following = rest.lstrip()[:1]
        # Another object follows the first line: these are JSON lines with a broken first one, so its own error is the
        # more useful one.
        sentence = error if following == b"{" and start[:1] == b"{" else complete_error
        raise InvalidRequest(f"{content.path}, line {number}: {sentence}") from complete_error
    yield from _records_of_value(content, value, number)


def _records_of_value(content: FileContent, value: object, number: int) -> Iterator[Record]:
    if isinstance(value, list):
        entries = [(f"entry {position}", entry) for position, entry in enumerate(value, start=1)]
    elif isinstance(value, Mapping):
        try:
            entries = [(place or f"line {number}", entry) for place, entry in records_of_object(value)]
        except BadRow as error:
            raise InvalidRequest(f"{content.path}: {error}") from error
    else:
        raise InvalidRequest(f"{content.path}, line {number}: must be a JSON object, found {describe(value)}")
    for place, entry in entries:
        if not isinstance(entry, Mapping):
            raise InvalidRequest(f"{content.path}, {place}: must be a JSON object, found {describe(entry)}")
        yield Record(place, Row(entry))


def _record(content: FileContent, number: int, value: object) -> Record:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{content.path}, line {number}: must be a JSON object, found {describe(value)}")
    return Record(f"line {number}", Row(value))


def _line_value(content: FileContent, number: int, line: bytes) -> object:
    try:
        return _parse(line)
    except BadRow as error:
        raise InvalidRequest(f"{content.path}, line {number}: {error}") from error


def _strip_line(line: bytes, number: int) -> bytes:
    return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists nested too deep
        raise BadRow(f"not usable JSON: {error}") from error
