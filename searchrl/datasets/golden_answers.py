"""Converts a file's answers to texts: texts, numbers, booleans, lists, objects and JSON text."""

import ast
import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal

from searchrl.datasets.row import BadRow, canonical_key, describe, is_missing
from searchrl.domain.passage import number_text

MAX_DEPTH = 6
"""Levels of lists and objects. No known data set nests deeper than 3; the bound stops endless recursion."""
# Objects that hold answers: ground truths (target, gt_answer), TriviaQA (value, aliases), SQuAD (text), KILT (answer).
_VALUE_KEYS = (
    "target", "gtanswer", "value", "text", "answer", "answers", "goldenanswers", "aliases", "normalizedaliases",
    "normalizedvalue",
)  # fmt: skip
# Objects that state where an answer was found, or what was asked; they contain no answer.
_NO_ANSWER_KEYS = frozenset(
    {"provenance", "meta", "question", "gtdocs", "answerstart", "type", "matchedwikientityname"}
)

Answer = str | int
"""A text, or an integer, which is the position of an option if the question has options."""


def golden_texts(value: object) -> list[str]:
    """Return every answer in ``value`` as a text, each once, in order.

    | value | texts |
    |---|---|
    | "Ystad" | Ystad |
    | 1969, 1969.0 | 1969 |
    | true, false | yes, no |
    | ["a", ["b", "c"]] | a, b, c |
    | '["a", "b"]', "['a', 'b']" | a, b |
    | {"target": ..}, {"value": .., "aliases": ..}, {"text": ..}, {"answer": ..} | the values of these keys |
    | null, NaN, "", "  " | none |

    Raises:
        BadRow: an object of another kind, or lists nested deeper than ``MAX_DEPTH``.
    """
    return list(dict.fromkeys(answer if isinstance(answer, str) else str(answer) for answer in golden_values(value)))


def golden_values(value: object) -> list[Answer]:
    """Return the answers as ``golden_texts`` does, but keep integers as numbers."""
    return list(_answers(value, 0))


def _answers(value: object, depth: int) -> Iterator[Answer]:
    if depth > MAX_DEPTH:
        raise BadRow(f"answers are nested over {MAX_DEPTH} levels deep")
    if is_missing(value):
        return
    match value:
        # Before int, of which bool is a subclass.
        case bool():
            yield "yes" if value else "no"
        case int():
            yield value
        case float() | Decimal():
            yield from _number(float(value))
        case str():
            yield from _text(value, depth)
        case bytes():
            yield from _text(value.decode("utf-8", "replace"), depth)
        case date() | datetime():
            yield value.isoformat()
        case list() | tuple():
            for entry in value:
                yield from _answers(entry, depth + 1)
        case Mapping():
            yield from _of_object(value, depth)
        case _:
            raise BadRow(
                f"an answer must be a text, a number, a truth value or a list of them, found {describe(value)}"
            )


def _number(value: float) -> Iterator[Answer]:
    if value in (float("inf"), float("-inf")):
        return
    # A column of integers with a null in it becomes one of floats: 1969 arrives as 1969.0.
    if value.is_integer() and abs(value) < 2**53:
        yield int(value)
    else:
        yield number_text(value)


def _text(value: str, depth: int) -> Iterator[Answer]:
    text = value.strip()
    if not text:
        return
    parsed = _parse_collection(text)
    if parsed is None:
        yield text
    else:
        yield from _answers(parsed, depth + 1)


def _parse_collection(text: str) -> object:
    """Return a list or object that is written as text, in JSON or Python; None if it is neither."""
    if (text[0], text[-1]) not in {("[", "]"), ("{", "}")}:
        return None
    # pandas writes a list in a column of a CSV as Python's repr, with single quotes, which JSON does not allow.
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        # TypeError: a list or object in a set or as a key, such as "{[1]}", cannot be hashed.
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return None


def _of_object(value: Mapping[object, object], depth: int) -> Iterator[Answer]:
    entries = {canonical_key(str(key)): entry for key, entry in value.items()}
    known = [key for key in _VALUE_KEYS if key in entries]
    if not known and not entries.keys() <= _NO_ANSWER_KEYS:
        raise BadRow(f"no answer in {describe(value)}; known are target, value, aliases, text, answer")
    for key in known:
        yield from _answers(entries[key], depth + 1)
