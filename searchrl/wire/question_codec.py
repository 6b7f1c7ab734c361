"""How does a question travel?"""

from searchrl.contracts.v1 import question_pb2 as pb
from searchrl.domain.question import Question


def question_to_wire(question: Question) -> pb.Question:
    return pb.Question(
        id=question.id,
        text=question.text,
        golden_answers=question.golden_answers,
        source=question.source,
        filters=dict(question.filters),
        metadata=dict(question.metadata),
        gold_passage_ids=question.gold_passage_ids,
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
    )
