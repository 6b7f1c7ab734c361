"""Selects training questions as s3 does, and writes questions so that every reader gets the same ones."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from searchrl.datasets.question_row import question_from_row
from searchrl.datasets.row import BadRow, Row
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest

YES_NO_ANSWERS = frozenset({"yes", "no", "true", "false", "Yes", "No", "True", "False"})
"""The spellings that s3 looks for; another one, such as NO, is an answer like any other (NO is also Norway)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a filter kept and left out, both in the order of the file."""

    kept: tuple[Question, ...]
    dropped: tuple[Question, ...]


def select(questions: Iterable[Question], drops: Callable[[Question], bool]) -> Selection:
    """Split the questions by a condition."""
    kept: list[Question] = []
    dropped: list[Question] = []
    for question in questions:
        (dropped if drops(question) else kept).append(question)
    return Selection(tuple(kept), tuple(dropped))


def has_yes_no_answer(question: Question) -> bool:
    """Return whether any golden answer is yes, no, true or false: a guess is right half of the time."""
    return not YES_NO_ANSWERS.isdisjoint(question.golden_answers)


def question_lines(questions: Sequence[Question]) -> str:
    """Return the questions as JSON lines in this project's form.

    Ids and texts stay the same, so baselines of the complete file remain valid.

    Raises:
        InvalidRequest: a question would be read as another one, such as one whose answer is itself a JSON list.
    """
    lines: list[str] = []
    for question in questions:
        line = json.dumps(_to_row(question), ensure_ascii=False)
        try:
            is_same = question_from_row(Row(json.loads(line))).question == question
        except BadRow:
            is_same = False
        if not is_same:
            raise InvalidRequest(f"question {question.id!r} cannot be written so that it is read as the same question")
        lines.append(line + "\n")
    return "".join(lines)


def _to_row(question: Question) -> dict[str, object]:
    """Return the row of a question; fields without content are left out."""
    plain = Question(question.id, question.text)
    row: dict[str, object] = {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "source": question.source,
        "gold_doc_ids": list(question.gold_passage_ids),
        "filters": dict(question.filters),
        "metadata": dict(question.metadata),
        "choices": [{"label": choice.label, "text": choice.text} for choice in question.choices],
        "generator_text": question.generator_text if question.generator_text != plain.generator_text else "",
        "retrieval_query": question.retrieval_query if question.retrieval_query != plain.retrieval_query else "",
    }
    return {name: value for name, value in row.items() if value}
