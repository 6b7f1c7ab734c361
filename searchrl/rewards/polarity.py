"""Reads yes or no from the beginning of an answer, ignoring any later "no", and from a judge's reply."""

import ast
import json
import re
from collections.abc import Mapping

from searchrl.domain.thoughts import strip_thoughts

_TRUE, _FALSE = frozenset({"yes", "true"}), frozenset({"no", "false"})
_WORDS = "yes|no|true|false"
# Quotes, Markdown, brackets and list marks around a text, and LaTeX's box.
_DECORATION = re.compile(r"[*_`\"'“”‘’#>\[\](){}$]|\\boxed|\\text(?:bf|rm|it)?|(?m:^\s*-\s)")
# <answer>, </verdict>: a tag in which an answer may be wrapped.
_WRAPPING_TAG = re.compile(r"</?[A-Za-z_]{1,24}>")
# "The answer is", "Answer:", "So the final answer is", "Verdict:", "Correct: ".
_INTRODUCTION = re.compile(
    r"\A(?:(?:so|thus|hence|therefore|then)[\s,]+)?(?:(?:the|my)\s+)?(?:(?:final|correct|short|right|best)\s+)?"
    r"(?:answer|verdict|response|result|conclusion|judge?ment|decision|(?:is)?correct)"
    r"(?:\s+to\s+(?:the|this|your)\s+question)?\s*(?:[:=]|\bis\b)[\s:]*",
    re.IGNORECASE,
)
# "No (the other town)": the text in parentheses is an addition, as after a comma.
_ASIDE = re.compile(r"(?<=\w)\s*[(\[]")
_FIRST = re.compile(rf"\A[\s.,;:!-]*({_WORDS})\b(?P<rest>.*)\Z", re.IGNORECASE | re.DOTALL)
# "Yes and no", "yes/no", "No. Yes." contradict; "Yes, no doubt about it" does not.
_CONTRADICTION = re.compile(rf"\A[\s.,;:!/&-]*(?:(?:and|or)\s+)?({_WORDS})\s*(?:[.,;:!/?)]|\Z)", re.IGNORECASE)
# "No, it is not" and "No they are not" answer; "No information", "No one" and "No longer" say something else.
_AFTER_NO = re.compile(
    r"\A(?:\s*[.,;:!?—–-]|\s*\Z|\s*\n|\s+(?:no|not|it|they|he|she|we|you|i|there|this|that|these|those|both|neither|because|since"
    r"|the|but|as|although|though|while|only|according|based)\b)",
    re.IGNORECASE,
)

_VERDICT_KEYS = ("correct", "iscorrect", "right", "verdict", "answer", "judgment", "judgement", "result", "decision")
_RIGHT = frozenset({"correct", "right"})
# "The response is correct.", "It is not right", and the bare word.
_STATEMENT = re.compile(
    r"\A(?:it\s+is\s+)?(?P<negated>not\s+)?(?P<word>correct|right|incorrect|wrong)\s*(?:[.,;!\n–—-]|\Z)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_OBJECT = re.compile(r"\{[^{}]*\}")


def polarity_of_golden(golden: str) -> bool | None:
    """Return True for a golden yes or true, False for no or false, None for any other golden answer."""
    word = golden.strip().strip(".!").lower()
    return True if word in _TRUE else False if word in _FALSE else None


def polarity_of(answer: str) -> bool | None:
    """Return True if the answer says yes, False if no, None if its beginning says neither.

    | answer | says |
    |---|---|
    | "Yes.", "**yes**", "True", "Yes, there is no doubt." | yes |
    | "No", "No, both lie in Sweden.", "The answer is no." | no |
    | "There is no information.", "No one knows.", "Yes and no." | nothing |
    """
    text = remove_introduction(_ASIDE.sub(", ", answer))
    match = _FIRST.match(text)
    if match is None:
        return None
    says_yes = match[1].lower() in _TRUE
    rest = match["rest"]
    other = _CONTRADICTION.match(rest)
    if other is not None and (other[1].lower() in _TRUE) != says_yes:
        return None
    if match[1].lower() == "no" and not _AFTER_NO.match(rest):
        return None
    if match[1].lower() in ("true", "false") and re.match(r"\s+\w", rest):  # "True love", "False alarm"
        return None
    return says_yes


def remove_introduction(answer: str) -> str:
    """Return a short answer without its decoration and without an introduction such as "The answer is"."""
    return _INTRODUCTION.sub("", undecorate(answer))


def undecorate(text: str) -> str:
    """Remove the decoration in which models wrap a short answer: tags, quotes, Markdown, brackets, LaTeX's box."""
    return _DECORATION.sub("", _WRAPPING_TAG.sub(" ", text)).strip()


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
    # A reply that begins with yes and ends with no has no verdict: either line could be the model's conclusion.
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
    # Fenced blocks as well as single objects: a block may hold nested ones, of which the second pattern finds the
    # innermost alone.
    for candidate in [*_FENCE.findall(text), *_OBJECT.findall(text)]:
        value = _parse_literal(candidate)
        if isinstance(value, Mapping):
            entries = {str(key).lower().replace("_", "").replace(" ", ""): entry for key, entry in value.items()}
            verdicts |= {_verdict_of_value(entries[key]) for key in _VERDICT_KEYS if key in entries}
    return verdicts


def _parse_literal(text: str) -> object:
    """Return the value of a text in JSON or in Python, which models also write; None if it is neither."""
    # literal_eval evaluates constants and containers only, so a reply cannot run code.
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
