"""Reads one line of a corpus in the layouts of Search-R1, MedCorp, BEIR and plain title/text rows."""

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from searchrl.domain.passage import Passage, metadata_text, normalize_passage_id, number_text


class RowError(ValueError):
    """The line is not a usable row; the message says why."""


class CorpusRow(NamedTuple):
    """One passage as the corpus gives it.

    Attributes:
        contents: the text to index; as given, or the quoted title, a newline and the text.
        fields: every field of the row, for clients that want the row itself.
    """

    passage: Passage
    contents: str
    fields: Mapping[str, object]

    @property
    def document(self) -> dict[str, object]:
        """The row's own fields, with ``id`` and ``contents`` always present."""
        return {**self.fields, "id": self.passage.id, "contents": self.contents}


def parse_row(line: bytes) -> CorpusRow:
    """Read one line.

    The id is ``id`` or ``_id``. The text is ``contents``, or ``title`` with ``text`` or ``content``. A separate title
    wins over the first line of ``contents``.

    Raises:
        RowError: bad UTF-8, bad JSON, not an object, no id, no text, or a field of the wrong type.
    """
    fields = _load(line)
    id = _identifier(fields)
    text = _text(fields, "text")
    if text is None:
        text = _text(fields, "content")
    contents = _text(fields, "contents")
    title = _title(fields.get("title"))
    metadata = _metadata(fields.get("metadata"))
    if contents is None:
        if text is None:
            raise RowError("no text: needs 'contents', 'text' or 'content'")
        # Search-R1's layout, so that the same passage is indexed alike whatever layout its corpus has.
        contents = f'"{title or ""}"\n{text}' if title else text
    if not contents.strip():
        raise RowError("the text is empty")
    return CorpusRow(_passage(id, contents, title, text, metadata), contents, fields)


def _passage(id: str, contents: str, title: str | None, text: str | None, metadata: dict[str, str]) -> Passage:
    if text is not None:
        return Passage(id, title or "", text, metadata)
    if "\n" in contents:
        read = Passage.from_contents(id, contents, metadata)
        return read if title is None else Passage(id, title, read.text, metadata)
    return Passage(id, title or "", contents, metadata)


def _load(line: bytes) -> dict[str, object]:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            # orjson does not tell bad UTF-8 from bad JSON; decoding does, and costs time only for bad lines.
            line.decode("utf-8")
        except UnicodeDecodeError as bad:
            raise RowError(f"not UTF-8 at byte {bad.start}") from bad
        raise RowError(f"not JSON: {error.msg}") from error
    if not isinstance(fields, dict):
        raise RowError("not a JSON object")
    return fields


def _identifier(fields: Mapping[str, object]) -> str:
    id = fields.get("id", fields.get("_id"))
    if isinstance(id, float) and id.is_integer():  # integers that a table with missing values has turned into floats
        id = number_text(id)
    # bool is a subclass of int, but ``true`` is no id.
    if isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise RowError("no id: needs a string or a whole number in 'id' or '_id'")
    return normalize_passage_id(str(id))


def _title(value: object) -> str | None:
    """The title as text; the book 1984 may come as a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_text(value)
    if value is not None and not isinstance(value, str):
        raise RowError("'title' is not a string")
    return value


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"'{name}' is not a string")
    return value


def _metadata(value: object) -> dict[str, str]:
    """Flat texts in the form that filters use, nulls left out. An object may be given as JSON text."""
    if isinstance(value, str) and value.strip():
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise RowError("'metadata' is a text, not an object") from error
    if value in (None, "", []) or (isinstance(value, str) and not value.strip()):
        return {}
    if not isinstance(value, dict):
        raise RowError("'metadata' is not an object")
    texts = {key: metadata_text(item) for key, item in value.items()}
    return {key: text for key, text in texts.items() if text is not None}


def filter_term(key: str, value: str) -> str:
    """The index term of a metadata equality, in one Unicode form.

    The NUL keeps ``a=b``/``c`` apart from ``a``/``b=c``.
    """
    return unicodedata.normalize("NFC", f"{key}\0{value}")
