"""Converts a row of any shape to a question."""

import contextlib
import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from searchrl.datasets.choices import choice_answers, read_choices, split_options
from searchrl.datasets.golden_answers import golden_texts, golden_values
from searchrl.datasets.row import BadRow, Row, describe, is_missing
from searchrl.datasets.shapes import ROW_SHAPES
from searchrl.datasets.shapes.base import RowFields
from searchrl.domain.passage import metadata_text, normalize_passage_id, number_text
from searchrl.domain.question import Choice, Question, with_options
from searchrl.input_files import parse_json

ID_CHARACTERS = 16
"""Hexadecimal digits of the SHA-256 that names a question without an id: 64 bits keep millions of questions apart.
Two of 2 million have the same id with a probability of about (2 * 10**6)**2 / 2**65 = 1e-7."""


class ReadRow(NamedTuple):
    """A row's question; whether the row has an id; whether it is a query that only qrels judge."""

    question: Question
    has_id: bool
    is_query: bool


def question_from_row(row: Row) -> ReadRow:
    """Read one row.

    A row without an id is named after its content, so that every service derives the same id from every copy of a file.

    Raises:
        BadRow: the question cannot be found, or a key has the wrong kind of value.
    """
    shape = next(shape for shape in ROW_SHAPES if shape.matches(row))
    fields = shape.read(row)
    stem, choices = _stem_and_choices(fields)
    text = with_options(stem, choices)
    identifier = _identifier(fields.identifier)
    question = Question(
        id=identifier or _content_id(text),
        text=text,
        golden_answers=_golden_answers(fields, choices),
        source=fields.source,
        filters=_filters(fields.filters),
        metadata=_metadata(fields.metadata),
        gold_passage_ids=_passage_ids(fields.gold_ids),
        choices=choices,
        generator_text=fields.generator_text,
        retrieval_query=fields.retrieval_query or stem,
    )
    _check_unicode(question)
    return ReadRow(question, bool(identifier), fields.is_question_only)


def _stem_and_choices(fields: RowFields) -> tuple[str, tuple[Choice, ...]]:
    # Options in a column win over those in the text; the question loses the latter in either case.
    stem, written = split_options(fields.question)
    choices = read_choices(fields.choices)
    if choices:
        return stem, choices
    return stem, written


def _golden_answers(fields: RowFields, choices: tuple[Choice, ...]) -> tuple[str, ...]:
    """Return the answers under the first key that has any, and all aliases."""
    for answers in fields.answers:
        values = golden_values(answers)
        if values and choices:
            return choice_answers(values, choices)
        if values:
            # Only without options: an alias is another spelling of the answer and no option's text.
            aliases = (text for alias in fields.aliases for text in golden_texts(alias))
            return tuple(dict.fromkeys([*map(str, values), *aliases]))
    return ()


def _identifier(value: object) -> str:
    """Return the id as a text; empty if there is none. 0 is an id."""
    if is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f'"id" must be a text or a number, found {describe(value)}')
    return value.strip() if isinstance(value, str) else number_text(value)


def _content_id(text: str) -> str:
    # A lone surrogate must not fail here: _check_unicode refuses it with a better message.
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:ID_CHARACTERS]


def _filters(value: object) -> dict[str, str]:
    """Return a flat mapping as texts.

    A value that cannot be compared is an error: without its filter a search would find too much.
    """
    filters: dict[str, str] = {}
    for name, entry in _mapping(value, "filters").items():
        if isinstance(entry, Mapping | list):
            raise BadRow(f'"filters" must hold texts, numbers or truth values, found {describe(entry)} in {name!r}')
        # A null is a filter that this row does not set: a table gives every row the keys of all rows.
        text = metadata_text(entry)
        if text is not None:
            filters[name] = text
    return filters


def _metadata(value: object) -> dict[str, str]:
    """Return the flat part of the metadata as texts; nested values and texts that are not objects are left out."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        return {}
    entries = _mapping(value, "metadata").items()
    texts = {name: metadata_text(entry) for name, entry in entries if not isinstance(entry, Mapping | list)}
    return {name: text for name, text in texts.items() if text is not None}


def _mapping(value: object, key: str) -> dict[str, object]:
    if value is None:
        return {}
    if isinstance(value, str):  # as JSON text, as some exports write nested columns
        with contextlib.suppress(ValueError):
            value = parse_json(value)
    if not isinstance(value, Mapping):
        raise BadRow(f'"{key}" must be an object, found {describe(value)}')
    return {str(name): entry for name, entry in value.items()}


def _passage_ids(value: object) -> tuple[str, ...]:
    if is_missing(value):
        return ()
    entries = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(entry, str | int | float) and not isinstance(entry, bool) for entry in entries):
        raise BadRow(f'"gold_doc_ids" must be a list of ids, found {describe(value)}')
    texts = (metadata_text(entry) or "" for entry in entries if str(entry).strip())
    return tuple(dict.fromkeys(map(normalize_passage_id, texts)))


def _check_unicode(question: Question) -> None:
    """Refuse a lone surrogate, which JSON can spell but protobuf and the store cannot hold."""
    parts = [
        question.id, question.text, question.generator_text, question.retrieval_query, *question.golden_answers,
        question.source, *question.gold_passage_ids, *(choice.label for choice in question.choices),
        *(part for each in (question.filters, question.metadata) for item in each.items() for part in item),
    ]  # fmt: skip
    try:
        "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise BadRow("contains a lone surrogate, which is not a character") from error
