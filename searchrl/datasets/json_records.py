"""Yields the records of JSON lines, of one JSON array, and of one JSON object that holds records.

An object holds them as SQuAD's articles, as MIRAGE's sets, as rows by id, as columns, or as a list under one key.
"""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from searchrl.datasets.file_content import FileContent
from searchrl.datasets.row import BadRow, Record, Row, canonical_key, describe
from searchrl.datasets.shapes.base import QUESTION_KEYS
from searchrl.errors import InvalidRequest
from searchrl.input_files import parse_json

Placed = tuple[str, object]
_LIST_KEYS = ("data", "questions", "rows", "examples", "instances", "items", "samples")
_SPLITS = frozenset({"train", "training", "dev", "validation", "valid", "val", "test"})


def json_records(content: FileContent) -> Iterator[Record]:
    """Read the records of a file in any of the three layouts.

    The first line decides between them. If it is not a complete JSON value, or is the only line, the file is one JSON
    value; otherwise it is JSON lines, which are read one by one.

    Raises:
        InvalidRequest: the file is not UTF-8 or not JSON, or an entry is not an object; names the place.
    """
    # One iterator for the complete function: what the first loop has consumed is not read again.
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
        return parse_json(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error}") from error
    except ValueError as error:  # a number of thousands of digits, or lists nested too deep
        raise BadRow(f"not usable JSON: {error}") from error


def records_of_object(value: Mapping[str, object]) -> list[Placed]:
    """Return (place, row) for every row in the object; an empty place for an object that is itself a row.

    Raises:
        BadRow: no rows are found in it, or it holds several lists, such as one per split.
    """
    keys = {canonical_key(str(key)): key for key in value}
    question = next((value[keys[key]] for key in QUESTION_KEYS if key in keys), None)
    # A row rather than a container of rows: its question, prompt, messages or text stands in the object itself.
    own = not keys.keys().isdisjoint(("rewardmodel", "prompt", "messages"))
    if isinstance(question, str) or own or isinstance(value.get("text"), str):
        return [("", value)]
    if isinstance(question, Mapping) and "stem" in question:
        return [("", value)]
    if isinstance(question, Mapping | list):
        return list(_rows_of_columns(value, question))
    lists = [key for key, entry in value.items() if _is_list_of_objects(entry)]
    preferred = [key for key in lists if canonical_key(str(key)) in _LIST_KEYS]
    if len(preferred) == 1 or len(lists) == 1:
        (key, *_) = preferred or lists
        return list(_rows_of_list(key, value[key]))
    if lists:
        raise BadRow(f"holds several lists ({', '.join(map(repr, lists))}); keep one of them in a file of its own")
    return list(_rows_by_id(value))


def _is_list_of_objects(entry: object) -> bool:
    return isinstance(entry, list) and bool(entry) and all(isinstance(each, Mapping) for each in entry)


def _rows_of_list(key: str, entries: object) -> Iterator[Placed]:
    assert isinstance(entries, list)
    for number, entry in enumerate(entries, start=1):
        place = f"entry {number} of {key!r}"
        if "paragraphs" in entry:
            yield from _rows_of_article(place, entry)
        elif isinstance(entry.get("row"), Mapping):  # the data set viewer's {"row_idx", "row"}
            yield place, entry["row"]
        else:
            yield place, entry


def _rows_of_article(place: str, article: Mapping[str, object]) -> Iterator[Placed]:
    """Yield the questions of an article of SQuAD: it holds paragraphs, and a paragraph holds its questions."""
    paragraphs = article["paragraphs"]
    for position, paragraph in enumerate(paragraphs if isinstance(paragraphs, Sequence) else (), start=1):
        questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        if not isinstance(questions, list):
            raise BadRow(
                f"{place}, paragraph {position}: needs a list of questions in 'qas', found {describe(questions)}"
            )
        for number, question in enumerate(questions, start=1):
            yield f"{place}, paragraph {position}, question {number}", question


def _rows_by_id(value: Mapping[str, object]) -> Iterator[Placed]:
    """Yield rows by their ids, or sets of rows by their ids (MIRAGE: {"medqa": {"0000": row}})."""
    # Training and test rows in one file would be mixed silently.
    splits = [name for name in value if canonical_key(str(name)) in _SPLITS]
    if len(splits) > 1:
        raise BadRow(f"holds several splits ({', '.join(map(repr, splits))}); keep one of them in a file of its own")
    for name, entry in value.items():
        if not isinstance(entry, Mapping):
            raise BadRow(f"holds no list of rows and no rows by id: found {describe(entry)} in {name!r}")
        inner = list(entry.values())
        if inner and all(isinstance(each, Mapping) for each in inner) and not _is_row(entry):
            for id, row in entry.items():
                # An id is unique within its set only, so the set's name is part of it.
                yield f"{id!r} of {name!r}", _add_id(row, f"{name}:{id}", str(name))
        else:
            yield f"{name!r}", _add_id(entry, str(name))


def _is_row(entry: Mapping[str, object]) -> bool:
    return any(canonical_key(str(key)) in QUESTION_KEYS for key in entry)


def _add_id(row: object, id: str, source: str = "") -> object:
    if not isinstance(row, Mapping):
        return row
    has = Row(row)
    added = {} if "id" in has else {"id": id}
    if source and "source" not in has and "datasource" not in has:
        added["source"] = source
    return {**row, **added}


def _rows_of_columns(value: Mapping[str, object], questions: Mapping[str, object] | list[object]) -> Iterator[Placed]:
    """Yield the rows of columns of equal length, as lists or by index (pandas)."""
    indices = list(questions) if isinstance(questions, Mapping) else list(range(len(questions)))
    # pandas' to_json writes columns as {"question": {"0": ..}}, and orient="list" of to_dict as {"question": [..]}.
    # Entries of another length are no columns, but remarks about the file.
    columns = {
        key: column
        for key, column in value.items()
        if (isinstance(column, Mapping) and set(column) >= set(indices) and isinstance(questions, Mapping))
        or (isinstance(column, list) and isinstance(questions, list) and len(column) == len(indices))
    }
    for number, index in enumerate(indices, start=1):
        yield f"entry {number}", {key: column[index] for key, column in columns.items()}  # pyright: ignore
