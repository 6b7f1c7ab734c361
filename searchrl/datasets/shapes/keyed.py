"""Reads rows with a question and its answers under one key each: this project's form, and that of most data sets.

FlashRAG, NQ-open, HotpotQA, 2WikiMultihopQA, MuSiQue, PopQA, TriviaQA, Bamboogle, StrategyQA, BoolQ, MMLU, ARC, MedQA,
KILT and MIRAGE differ only in the names of the keys and in the form of an answer, which ``golden_answers`` reads.
"""

from collections.abc import Mapping

from searchrl.datasets.row import Row
from searchrl.datasets.shapes.base import COMMON_KEYS, RowFields, common_fields, question_of


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
