"""Reads rows with a question and its answers in columns: this project's form, and those of most data sets.

FlashRAG, NQ-open, HotpotQA, 2WikiMultihopQA, MuSiQue, PopQA, TriviaQA, Bamboogle, StrategyQA, BoolQ, MMLU, ARC, MedQA,
KILT and MIRAGE differ only in the names of the keys and in the form of an answer, which ``golden_answers`` reads.
SQuAD, AmbigQA, ASQA and MedMCQA keep their answers elsewhere in the row and have a shape each.
"""

from collections.abc import Iterator, Mapping

from searchrl.datasets.row import BadRow, Row, canonical_key, describe
from searchrl.datasets.shapes.base import ANSWER_KEYS, COMMON_KEYS, RowFields, common_fields, question_of

_ANSWERS = ("answer", "answers", "shortanswers")
_READINGS = ("annotations", "qapairs")
_OPTIONS = {"A": "opa", "B": "opb", "C": "opc", "D": "opd"}


class SquadShape:
    """Rows with ``answers`` as {"text": [...], "answer_start": [...]} or as a list of {"text", "answer_start"}."""

    name = "squad"
    keys: frozenset[str] = COMMON_KEYS | {"isimpossible", "plausibleanswers"}

    def matches(self, row: Row) -> bool:
        answers = row.get("answers")
        # Parquet copies hold a struct of lists, SQuAD's own JSON a list of objects.
        if isinstance(answers, list) and answers:
            answers = answers[0]
        return isinstance(answers, Mapping) and "text" in answers

    def read(self, row: Row) -> RowFields:
        fields = common_fields(row, question_of(row))
        answers = row.get("answers")
        entries = answers if isinstance(answers, list) else [answers]
        fields.answers = [[entry.get("text") if isinstance(entry, Mapping) else entry for entry in entries]]
        return fields


class AmbiguousShape:
    """Rows with their answers inside ``annotations`` or ``qa_pairs``; the answers of every reading count as right."""

    name = "ambiguous"
    keys: frozenset[str] = COMMON_KEYS | {*_READINGS}

    def matches(self, row: Row) -> bool:
        return any(key in row for key in _READINGS) and not any(key in row for key in ANSWER_KEYS)

    def read(self, row: Row) -> RowFields:
        fields = common_fields(row, question_of(row))
        # In one list: each entry of fields.answers is an alternative, of which only the first with an answer counts.
        fields.answers = [list(_answers([row.get(key) for key in _READINGS]))]
        return fields


def _answers(value: object) -> Iterator[object]:
    if isinstance(value, list):
        for entry in value:
            yield from _answers(entry)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            name = canonical_key(str(key))
            if name in _ANSWERS:
                yield entry
            elif name in _READINGS:
                yield from _answers(entry)


class MedMcqaShape:
    """Rows of MedMCQA with a letter as the answer.

    Published copies count ``cop`` from 0 or from 1, and a row does not show which; so only a letter is accepted.
    """

    name = "medmcqa"
    keys: frozenset[str] = COMMON_KEYS | {*_OPTIONS.values(), "cop"}

    def matches(self, row: Row) -> bool:
        return "opa" in row and "opb" in row

    def read(self, row: Row) -> RowFields:
        fields = common_fields(row, question_of(row))
        fields.choices = {label: text for label, key in _OPTIONS.items() if (text := row.get(key)) is not None}
        right = row.get("cop")
        if not fields.answers and right is not None:
            if not isinstance(right, str) or right.strip().upper() not in _OPTIONS:
                raise BadRow(
                    f'"cop" counts the options from 0 in some copies of MedMCQA and from 1 in others, found '
                    f'{describe(right)}; add "answer" with the letter (A, B, C or D)'
                )
            fields.answers = [right.strip().upper()]
        return fields


class KeyedShape:
    """Any row with a question; the last shape in the registry, because it matches every row."""

    name = "keyed"
    keys: frozenset[str] = COMMON_KEYS

    def matches(self, row: Row) -> bool:
        return True

    def read(self, row: Row) -> RowFields:
        fields = common_fields(row, question_of(row))
        question = row.get("question")
        if isinstance(question, Mapping) and fields.choices is None:  # ARC keeps the options with the stem
            fields.choices = question.get("choices")
        return fields
