"""Converts passages, search results, questions and provenance between the domain and the wire."""

from collections.abc import Iterable, Sequence

from searchrl.contracts.v1 import passage_pb2, provenance_pb2, question_pb2
from searchrl.domain.answer import Provenance
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Choice, Question


def passage_to_wire(passage: Passage) -> passage_pb2.Passage:
    return passage_pb2.Passage(id=passage.id, title=passage.title, text=passage.text, metadata=dict(passage.metadata))


def passage_from_wire(message: passage_pb2.Passage) -> Passage:
    # Copies: the containers of a protobuf message are views, each of which keeps the complete message in memory.
    return Passage(message.id, message.title, message.text, dict(message.metadata))


def result_to_wire(result: SearchResult) -> passage_pb2.SearchResult:
    return passage_pb2.SearchResult(passage=passage_to_wire(result.passage), score=result.score, rank=result.rank)


def result_from_wire(message: passage_pb2.SearchResult) -> SearchResult:
    return SearchResult(passage_from_wire(message.passage), message.score, message.rank)


def results_from_wire(messages: Iterable[passage_pb2.SearchResult]) -> list[SearchResult]:
    return [result_from_wire(message) for message in messages]


def question_to_wire(question: Question) -> question_pb2.Question:
    derived = Question(question.id, question.text, choices=question.choices)
    return question_pb2.Question(
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


def question_from_wire(message: question_pb2.Question) -> Question:
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


def choices_to_wire(choices: Sequence[Choice]) -> list[question_pb2.Choice]:
    return [question_pb2.Choice(label=choice.label, text=choice.text) for choice in choices]


def choices_from_wire(messages: Iterable[question_pb2.Choice]) -> tuple[Choice, ...]:
    return tuple(Choice(message.label, message.text) for message in messages)


def provenance_to_wire(provenance: Provenance) -> provenance_pb2.Provenance:
    return provenance_pb2.Provenance(
        generator_model=provenance.generator_model,
        searcher_model=provenance.searcher_model,
        searcher_version=provenance.searcher_version,
        index_generations=provenance.index_generations,
        mode=provenance.mode,
        top_k=provenance.top_k,
        template_hash=provenance.template_hash,
        max_context_tokens=provenance.max_context_tokens,
        max_answer_tokens=provenance.max_answer_tokens,
        temperature=provenance.temperature,
    )


def provenance_from_wire(message: provenance_pb2.Provenance) -> Provenance:
    return Provenance(
        generator_model=message.generator_model,
        searcher_model=message.searcher_model,
        searcher_version=message.searcher_version,
        index_generations=tuple(message.index_generations),
        mode=message.mode,
        top_k=message.top_k,
        template_hash=message.template_hash,
        max_context_tokens=message.max_context_tokens,
        max_answer_tokens=message.max_answer_tokens,
        temperature=message.temperature,
    )
