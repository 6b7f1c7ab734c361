"""What does one row of a question file mean? Our own rows and those of FlashRAG, Search-R1 and s3."""

import json
from collections.abc import Mapping, Sequence

from searchrl.domain.question import Question

JsonRow = Mapping[str, object]


class BadRow(ValueError):
    """The row cannot be used; the message says why, the reader adds the line."""


def question_from_row(row: JsonRow, position: int) -> Question:
    """Read one row; ``position`` (from 0) becomes the id of a row without one.

    Known keys: ``id``, ``question``, ``golden_answers`` (also ``answers``, ``answer``, or Search-R1's
    ``reward_model.ground_truth.target``), ``gold_doc_ids``, ``filters``, ``metadata`` (also ``meta``), ``data_source``
    (also ``source``), ``choices`` (multiple choice: the options join the question's text).

    Raises:
        BadRow: a key has the wrong kind of value, or there is no question.
    """
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise BadRow('needs a non-empty "question"')
    if not _is_unicode(row):
        raise BadRow("holds a lone surrogate, which is no character")
    identifier = row.get("id", position)
    if not isinstance(identifier, str | int) or str(identifier) == "":
        raise BadRow('"id" must be a text or a whole number')
    return Question(
        id=str(identifier),
        text=_with_choices(text.strip(), row.get("choices")),
        golden_answers=_golden_answers(row),
        source=_source(row),
        filters=_strings(row, "filters", strict=True),
        metadata=_strings(row, "metadata" if "metadata" in row else "meta", strict=False),
        gold_passage_ids=_texts(row.get("gold_doc_ids"), "gold_doc_ids"),
        retrieval_query=text.strip(),
    )


def row_from_question(question: Question) -> dict[str, object]:
    """The row that ``question_from_row`` reads back as the same question."""
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "gold_doc_ids": list(question.gold_passage_ids),
        "source": question.source,
        "filters": dict(question.filters),
        "metadata": dict(question.metadata),
    }


def _is_unicode(row: JsonRow) -> bool:
    """JSON can spell half a surrogate pair, which neither the wire nor the store can carry."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _golden_answers(row: JsonRow) -> tuple[str, ...]:
    for key in ("golden_answers", "answers", "answer"):
        if row.get(key) is not None:
            return _texts(row[key], key)
    reward_model = row.get("reward_model")
    if isinstance(reward_model, Mapping):
        truth = reward_model.get("ground_truth")
        if isinstance(truth, Mapping):
            return _texts(truth.get("target"), "reward_model.ground_truth.target")
    return ()


def _texts(value: object, key: str) -> tuple[str, ...]:
    """A text or a list of texts and numbers; blank entries are dropped, since they would match every answer."""
    if value is None:
        return ()
    entries = [value] if isinstance(value, str | int | float) else value
    if not isinstance(entries, Sequence) or not all(isinstance(entry, str | int | float) for entry in entries):
        raise BadRow(f'"{key}" must be a list of texts')
    return tuple(str(entry) for entry in entries if str(entry).strip())


def _strings(row: JsonRow, key: str, *, strict: bool) -> dict[str, str]:
    """A flat mapping as texts; nested values are an error in filters and are left out of metadata."""
    value = row.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRow(f'"{key}" must be an object')
    flat = {str(name): str(entry) for name, entry in value.items() if isinstance(entry, str | int | float | bool)}
    if strict and len(flat) < len(value):
        raise BadRow(f'"{key}" must hold texts only')
    return flat


def _source(row: JsonRow) -> str:
    for key in ("data_source", "source"):
        value = row.get(key)
        if isinstance(value, str):
            return value
    return ""


def _with_choices(text: str, choices: object) -> str:
    if not choices:
        return text
    if isinstance(choices, Mapping):
        options = [f"{letter}: {option}" for letter, option in choices.items()]
    elif isinstance(choices, Sequence) and not isinstance(choices, str):
        options = [f"{chr(ord('A') + number)}: {option}" for number, option in enumerate(choices)]
    else:
        raise BadRow('"choices" must be an object or a list')
    return f"{text}\nOptions:\n" + "\n".join(options)
