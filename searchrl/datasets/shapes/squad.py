"""Reads rows of SQuAD and of data sets in its form: the answers are texts with their positions in a passage."""

from collections.abc import Mapping

from searchrl.datasets.row import Row
from searchrl.datasets.shapes.base import COMMON_KEYS, RowFields, common_fields, question_of


class SquadShape:
    """Rows with ``answers`` as {"text": [...], "answer_start": [...]} or as a list of {"text", "answer_start"}."""

    name = "squad"
    keys: frozenset[str] = COMMON_KEYS | {"isimpossible", "plausibleanswers"}

    def matches(self, row: Row) -> bool:
        answers = row.get("answers")
        if isinstance(answers, list) and answers:
            answers = answers[0]
        return isinstance(answers, Mapping) and "text" in answers

    def read(self, row: Row) -> RowFields:
        fields = common_fields(row, question_of(row))
        answers = row.get("answers")
        entries = answers if isinstance(answers, list) else [answers]
        fields.answers = [[entry.get("text") if isinstance(entry, Mapping) else entry for entry in entries]]
        return fields
