"""Defines the interface of a row shape and the fields that it finds in a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from searchrl.datasets.row import BadRow, Row, describe

# Where one value is needed, the order of a tuple is the priority of its keys.
QUESTION_KEYS = ("question", "query", "problem", "questiontext", "questionstem", "input", "ambiguousquestion")
ANSWER_KEYS = (
    "goldenanswers", "goldanswers", "answers", "answer", "possibleanswers", "answerkey", "correctanswer",
    "bestanswer", "finaldecision", "output", "target", "targets",
)  # fmt: skip
ALIAS_KEYS = ("answeraliases", "aliases", "normalizedaliases", "correctanswers")
CHOICE_KEYS = ("choices", "options")
ID_KEYS = ("id", "qid", "questionid", "queryid", "uid", "sampleid", "idx", "index")
SOURCE_KEYS = ("datasource", "source", "dataset")
METADATA_KEYS = ("metadata", "meta")
GOLD_ID_KEYS = ("golddocids", "goldpassageids")
COMMON_KEYS: frozenset[str] = frozenset(
    (
        *QUESTION_KEYS, *ANSWER_KEYS, *ALIAS_KEYS, *CHOICE_KEYS, *ID_KEYS, *SOURCE_KEYS, *METADATA_KEYS,
        *GOLD_ID_KEYS, "filters", "generatortext", "retrievalquery",
    )
)  # fmt: skip


@dataclass(slots=True)
class RowFields:
    """The fields of a row as found, before answers become texts and choices become options.

    Attributes:
        identifier: None if the row has none.
        answers: in order of priority; the first that gives a golden answer counts.
        aliases: further golden answers.
        choices: None if the question has no options.
        is_question_only: the row is a query of a retrieval collection: it has qrels instead of answers.
    """

    question: str
    identifier: object = None
    answers: list[object] = field(default_factory=list)
    aliases: list[object] = field(default_factory=list)
    choices: object = None
    source: str = ""
    filters: object = None
    metadata: object = None
    gold_ids: object = None
    generator_text: str = ""
    retrieval_query: str = ""
    is_question_only: bool = False


class RowShape(Protocol):
    """One family of rows.

    Attributes:
        name: the name in the documentation.
        keys: every key that is read, canonical; other columns of a parquet file are not loaded.
    """

    name: str
    keys: frozenset[str]

    def matches(self, row: Row) -> bool: ...

    def read(self, row: Row) -> RowFields:
        """Find the fields.

        Raises:
            BadRow: the question cannot be found.
        """
        ...


def common_fields(row: Row, question: str) -> RowFields:
    """Return the fields that all shapes have under the same keys."""
    return RowFields(
        question=question,
        identifier=row.first(ID_KEYS)[1],
        answers=[value for key in ANSWER_KEYS if (value := row.get(key)) is not None],
        aliases=[value for key in ALIAS_KEYS if (value := row.get(key)) is not None],
        choices=row.first(CHOICE_KEYS)[1],
        source=text_of(row, SOURCE_KEYS),
        filters=row.get("filters"),
        metadata=row.first(METADATA_KEYS)[1],
        gold_ids=row.first(GOLD_ID_KEYS)[1],
        generator_text=text_of(row, ("generatortext",)),
        retrieval_query=text_of(row, ("retrievalquery",)),
    )


def text_of(row: Row, keys: tuple[str, ...]) -> str:
    """Return the first text with content among ``keys``; empty if there is none."""
    values = (row.get(key) for key in keys)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")


def question_of(row: Row) -> str:
    """Return the text of the question.

    Raises:
        BadRow: there is none, or it is not a text.
    """
    key, value = row.first(QUESTION_KEYS)
    if isinstance(value, Mapping):  # ARC: {"stem", "choices"}
        value = value.get("stem") or value.get("text")
    if isinstance(value, str) and value.strip():
        return value.strip()
    if key:
        raise BadRow(f'needs a non-empty "question", found {describe(value)} in {key!r}')
    raise BadRow(f'needs a non-empty "question", found the keys {", ".join(map(repr, row.keys[:12])) or "none"}')
