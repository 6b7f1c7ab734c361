"""Reads the options of multiple-choice questions and finds the options to which golden answers refer."""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence

from searchrl.datasets.golden_answers import Answer
from searchrl.datasets.row import BadRow, canonical_key, describe, is_missing
from searchrl.domain.passage import number_text
from searchrl.domain.question import OPTIONS_HEADING, Choice
from searchrl.input_files import parse_json

_LABEL_KEYS = ("label", "key", "id", "letter", "option")
_TEXT_KEYS = ("text", "value", "content", "answer", "choice")
_LETTERED = re.compile(r"\(?([A-Za-z]|\d{1,2})[).:]\s*(.+)", re.DOTALL)
# An answer may be a label alone ("B."), an option may not.
_LABELED_ANSWER = re.compile(r"\(?\s*([A-Za-z]|\d{1,2})\s*[).:]\s*(.*)", re.DOTALL)

# Truth values among the answers are read as yes and no; the options may spell them true and false, or the reverse.
_SAME_TRUTH = {"yes": "true", "no": "false", "true": "yes", "false": "no"}


def read_choices(value: object) -> tuple[Choice, ...]:
    """Return the options in order; none if the question has none.

    | value | options |
    |---|---|
    | {"A": "water", "B": "fire"} | A: water, B: fire |
    | ["water", "fire"], ["A. water", "B. fire"] | A: water, B: fire |
    | [{"label": "A", "text": "water"}, ..] | A: water, .. |
    | {"label": ["A", "B"], "text": ["water", "fire"]} | A: water, B: fire |
    | JSON text of one of these, or lines "A. water" | the same |

    Raises:
        BadRow: anything else, a label twice, or an option without text.
    """
    # Exports to CSV write a list or an object as JSON text.
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise BadRow(f'"choices" is text but not JSON: {describe(value)}') from error
    if isinstance(value, str) and (written := _choices_of_lines(value)):
        return written
    if is_missing(value) or value == "":
        return ()
    if isinstance(value, Mapping):
        choices = _of_object(value)
    elif isinstance(value, list | tuple):
        choices = _of_list(value)
    else:
        raise BadRow(f'"choices" must be an object or a list, found {describe(value)}')
    labels = [choice.label.lower() for choice in choices]
    if len(set(labels)) < len(labels):
        raise BadRow(f'"choices" has a label twice: {", ".join(choice.label for choice in choices)}')
    return choices


def split_options(question: str) -> tuple[str, tuple[Choice, ...]]:
    """Separate a question from options that are part of its text, as s3's medical questions have them."""
    stem, heading, options = question.partition(OPTIONS_HEADING)
    if not heading:
        return question, ()
    choices = _choices_of_lines(options)
    return (stem.strip(), choices) if choices else (question, ())


def choice_answers(answers: Sequence[Answer], choices: Sequence[Choice]) -> tuple[str, ...]:
    """Return the label and the text of every option to which the answers refer.

    An answer is an option's label, its text, both ("B: fire"), or its position counted from 0.

    Raises:
        BadRow: an answer refers to no option.
    """
    meant: list[str] = []
    for answer in answers:
        choice = _meant_choice(answer, choices)
        if choice is None:
            options = ", ".join(f"{choice.label}: {choice.text}" for choice in choices)
            raise BadRow(f"the golden answer {describe(answer)} is none of the options ({describe(options)})")
        meant += [choice.label, choice.text]
    return tuple(dict.fromkeys(meant))


def _meant_choice(answer: Answer, choices: Sequence[Choice]) -> Choice | None:
    # The order decides between readings: a label comes first, so the answer 1 is the first of the options 1, 2, 3 but
    # the second of A, B, C. An integer is then a position; a text is an option's text before it is a position.
    text = str(answer).strip()
    by_label = next((choice for choice in choices if choice.label.lower() == text.lower()), None)
    by_text = next((choice for choice in choices if _plain(choice.text) == _plain(text)), None)
    if by_label is not None:
        return by_label
    if isinstance(answer, int):
        return choices[answer] if 0 <= answer < len(choices) else by_text
    if by_text is not None:
        return by_text
    if other := _SAME_TRUTH.get(_plain(text)):
        return next((choice for choice in choices if _plain(choice.text) == other), None)
    match = _LABELED_ANSWER.fullmatch(text)
    if match is not None:
        labeled = next((choice for choice in choices if choice.label.lower() == match[1].lower()), None)
        if labeled is not None and _plain(match[2]) in ("", _plain(labeled.text)):
            return labeled
    if text.isdecimal() and int(text) < len(choices):
        return choices[int(text)]
    return None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().strip(" .").split())


def _choices_of_lines(text: str) -> tuple[Choice, ...]:
    """Return the options of a text if each of its lines is one with a letter of its own; none otherwise."""
    matches = [_LETTERED.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    # A line without a letter, or a letter twice, makes fewer labels than lines.
    choices = tuple(Choice(match[1], match[2].strip()) for match in matches if match)
    labels = {choice.label.upper() for choice in choices}
    return choices if len(labels) == len(matches) else ()


def _of_object(value: Mapping[object, object]) -> tuple[Choice, ...]:
    entries = {canonical_key(str(key)): entry for key, entry in value.items()}
    texts = next((entries[key] for key in ("text", "texts", "choices") if isinstance(entries.get(key), list)), None)
    if isinstance(texts, list):
        labels = next((entries[key] for key in ("label", "labels", "key") if isinstance(entries.get(key), list)), None)
        labels = labels if isinstance(labels, list) else _letters(len(texts))
        if len(labels) != len(texts):
            raise BadRow(f'"choices" has {len(labels)} labels and {len(texts)} texts')
        return tuple(Choice(_text(label), _text(text)) for label, text in zip(labels, texts, strict=True))
    # A column of parquet gives every row the keys of all rows; the options that a row lacks are null.
    return tuple(Choice(str(key).strip(), _text(text)) for key, text in value.items() if not is_missing(text))


def _of_list(value: Sequence[object]) -> tuple[Choice, ...]:
    entries = list(value)
    # Nulls at the end are padding; one between two options is an error.
    while entries and is_missing(entries[-1]):
        entries.pop()
    letters = _letters(len(entries))
    if entries and all(isinstance(entry, Mapping) for entry in entries):
        return tuple(_labeled_choice(entry, letter) for entry, letter in zip(entries, letters, strict=True))
    texts = [_text(entry) for entry in entries]
    matches = [_LETTERED.fullmatch(text) for text in texts]
    own = [match[1] for match in matches if match]
    # Labels are removed only if they count A, B, C or 1, 2, 3 through all options. In a list of other texts,
    # "C. elegans" is no label and a text.
    if len(own) == len(texts) and [label.upper() for label in own] in (letters, _numbers(len(texts))):
        return tuple(Choice(match[1], match[2].strip()) for match in matches if match)
    return tuple(Choice(letter, text) for letter, text in zip(letters, texts, strict=True))


def _labeled_choice(entry: object, letter: str) -> Choice:
    assert isinstance(entry, Mapping)
    values = {canonical_key(str(key)): value for key, value in entry.items()}
    text = next((values[key] for key in _TEXT_KEYS if key in values), None)
    label = next((values[key] for key in _LABEL_KEYS if not is_missing(values.get(key))), None)
    if text is None and label is None and len(values) == 1:  # {"A": "water"}
        ((label, text),) = entry.items()
    if is_missing(text):
        raise BadRow(f'an option of "choices" has no text: {describe(entry)}')
    return Choice(letter if label is None else _text(label), _text(text))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise BadRow(f'an option of "choices" must be a text, found {describe(value)}')


def _letters(count: int) -> list[str]:
    """Return the labels A to Z, and numbers from 27 on."""
    return [string.ascii_uppercase[number] if number < 26 else str(number + 1) for number in range(count)]


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]
