"""Reads rows of MedMCQA: the options in the columns ``opa`` to ``opd``, the right one in ``cop``."""

from searchrl.datasets.row import BadRow, Row, describe
from searchrl.datasets.shapes.base import COMMON_KEYS, RowFields, common_fields, question_of

_OPTIONS = {"A": "opa", "B": "opb", "C": "opc", "D": "opd"}


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
