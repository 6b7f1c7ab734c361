"""What does one line of a corpus say? The layouts of Search-R1, MedCorp, BEIR and plain title/text rows."""

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from searchrl.domain.metadata_text import metadata_text
from searchrl.domain.passage import Passage


class RowError(ValueError):
    """The line is no usable row; the text says why."""


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
        """The row with ``id`` and ``contents`` always there."""
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
    title = _text(fields, "title")
    metadata = _metadata(fields.get("metadata"))
    if contents is None:
        if text is None:
            raise RowError("no text: needs 'contents', 'text' or 'content'")
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
            line.decode("utf-8")
        except UnicodeDecodeError as bad:
            raise RowError(f"not UTF-8 at byte {bad.start}") from bad
        raise RowError(f"not JSON: {error.msg}") from error
    if not isinstance(fields, dict):
        raise RowError("not a JSON object")
    return fields


def _identifier(fields: Mapping[str, object]) -> str:
    id = fields.get("id", fields.get("_id"))
    if isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise RowError("no id: needs a string or a whole number in 'id' or '_id'")
    return unicodedata.normalize("NFC", str(id))


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"'{name}' is not a string")
    return value


def _metadata(value: object) -> dict[str, str]:
    """Flat strings, as ``metadata_text`` writes them for filters, too; nulls are left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError("'metadata' is not an object")
    texts = {key: metadata_text(item) for key, item in value.items()}
    return {key: text for key, text in texts.items() if text is not None}
