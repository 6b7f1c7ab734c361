"""Converts questions between the domain and the wire."""

from collections.abc import Iterable, Sequence

from searchrl.contracts.v1 import question_pb2 as pb
from searchrl.domain.question import Choice, Question


def question_to_wire(question: Question) -> pb.Question:
    derived = Question(question.id, question.text, choices=question.choices)
    return pb.Question(
        id=question.id,
        text=question.text,
        golden_answers=question.golden_answers,
        source=question.source,
        filters=dict(question.filters),
        metadata=dict(question.metadata),
        gold_passage_ids=question.gold_passage_ids,
        choices=choices_to_wire(question.choices),
        # The receiver derives empty fields from the text and the choices, so that equal texts are sent only once.
        generator_text="" if question.generator_text == derived.generator_text else question.generator_text,
        retrieval_query="" if question.retrieval_query == derived.retrieval_query else question.retrieval_query,
    )


def question_from_wire(message: pb.Question) -> Question:
    return Question(
        id=message.id,
        text=message.text,
        golden_answers=tuple(message.golden_answers),
        source=message.source,
        filters=dict(message.filters),
        metadata=dict(message.metadata),
        gold_passage_ids=tuple(message.gold_passage_ids),
        choices=choices_from_wire(message.choices),
        generator_text=message.generator_text,
        retrieval_query=message.retrieval_query,
    )


def choices_to_wire(choices: Sequence[Choice]) -> list[pb.Choice]:
    return [pb.Choice(label=choice.label, text=choice.text) for choice in choices]


def choices_from_wire(messages: Iterable[pb.Choice]) -> tuple[Choice, ...]:
    return tuple(Choice(message.label, message.text) for message in messages)
