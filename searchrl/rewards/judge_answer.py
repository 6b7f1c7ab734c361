"""Parses a judge's reply as yes or no."""

import ast
import json
import re
from collections.abc import Mapping

from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.polarity import polarity_of, remove_introduction

_VERDICT_KEYS = ("correct", "iscorrect", "right", "verdict", "answer", "judgment", "judgement", "result", "decision")
_RIGHT = frozenset({"correct", "right"})
# "The response is correct.", "It is not right", and the bare word.
_STATEMENT = re.compile(
    r"\A(?:it\s+is\s+)?(?P<negated>not\s+)?(?P<word>correct|right|incorrect|wrong)\s*(?:[.,;!\n–—-]|\Z)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_OBJECT = re.compile(r"\{[^{}]*\}")


def parse_verdict(text: str) -> bool | None:
    """Return True for yes, False for no, None for anything undecided. Thoughts are skipped.

    | reply | verdict |
    |---|---|
    | "Yes.", "**no**", "[[yes]]", "\\boxed{no}", "<verdict>no</verdict>", "True", "Correct." | that word |
    | "Yes, there is no doubt.", "No, it is not." | its first word |
    | "Verdict: yes", "The answer is no", "The response is not correct." | what it states |
    | '{"correct": true}', '```json {"verdict": "no"} ```', "{'correct': True}" | the value |
    | reasons, and a last line as above | the last line, unless the first contradicts it |
    | "yesterday", "I know: yes", "yes and no", "", a thought that was cut | none |
    """
    reply = strip_thoughts(text)
    if not reply:
        return None
    in_json = _verdicts_in_json(reply)
    if in_json:
        return in_json.pop() if len(in_json) == 1 else None
    first = _statement(reply)
    lines = [line for line in reply.splitlines() if line.strip()]
    last = _statement(lines[-1]) if len(lines) > 1 else None
    if first is not None and last is not None and first != last:
        return None
    return first if first is not None else last


def _statement(text: str) -> bool | None:
    said = polarity_of(text)
    if said is not None:
        return said
    match = _STATEMENT.match(remove_introduction(text))
    if match is None:
        return None
    says_right = match["word"].lower() in _RIGHT
    return says_right != bool(match["negated"])


def _verdicts_in_json(text: str) -> set[bool | None]:
    """Return the verdicts in the JSON objects of the reply; empty if no object has a verdict key."""
    verdicts = set[bool | None]()
    for candidate in [*_FENCE.findall(text), *_OBJECT.findall(text)]:
        value = _parse_literal(candidate)
        if isinstance(value, Mapping):
            entries = {str(key).lower().replace("_", "").replace(" ", ""): entry for key, entry in value.items()}
            verdicts |= {_verdict_of_value(entries[key]) for key in _VERDICT_KEYS if key in entries}
    return verdicts


def _parse_literal(text: str) -> object:
    """Return the value of a text in JSON or in Python, which models also write; None if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _verdict_of_value(value: object) -> bool | None:
    match value:
        case bool():
            return value
        case 0 | 1:
            return bool(value)
        case str():
            return _statement(value)
    return None
