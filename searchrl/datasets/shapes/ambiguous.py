"""Reads rows of AmbigQA and ASQA: an ambiguous question with the answers of every reading."""

from collections.abc import Iterator, Mapping

from searchrl.datasets.row import Row, canonical_key
from searchrl.datasets.shapes.base import ANSWER_KEYS, COMMON_KEYS, RowFields, common_fields, question_of

_ANSWERS = ("answer", "answers", "shortanswers")
_READINGS = ("annotations", "qapairs")


class AmbiguousShape:
    """Rows with their answers inside ``annotations`` or ``qa_pairs``; the answers of every reading count as right."""

    name = "ambiguous"
    keys: frozenset[str] = COMMON_KEYS | {*_READINGS}

    def matches(self, row: Row) -> bool:
        return any(key in row for key in _READINGS) and not any(key in row for key in ANSWER_KEYS)

    def read(self, row: Row) -> RowFields:
        fields = common_fields(row, question_of(row))
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
