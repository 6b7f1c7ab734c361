"""Answers, their events and verdicts keep every field on their way over the wire."""

from dataclasses import replace
from typing import Any

import pytest

from searchrl.agent.types import DocumentsFound, DocumentsSelected, QueriesIssued
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.domain.answer import Answer, Provenance, SearchStep, TextWritten, Usage, Verdict
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock, TokenRecord, Trajectory
from searchrl.errors import Unavailable
from searchrl.wire.answer_codec import (
    AnswerEvents,
    answer_to_wire,
    context_answer_from_wire,
    context_answer_to_wire,
    step_to_wire,
    verdict_from_wire,
    verdict_to_wire,
)
from searchrl.wire.record_codec import passage_to_wire, result_to_wire


def documents(turn: int, query: str, *ids: str) -> pb.AnswerEvent:
    results = [result_to_wire(SearchResult(Passage(name, name.upper(), ""), 1.0, 1)) for name in ids]
    return pb.AnswerEvent(documents=pb.DocumentsStep(turn=turn, query=query, results=results))


def selection(turn: int, *ids: str) -> pb.AnswerEvent:
    return pb.AnswerEvent(selection=pb.SelectionStep(turn=turn, passage_ids=ids))


def final(**fields: Any) -> pb.AnswerEvent:
    return pb.AnswerEvent(final=pb.FinalStep(**fields))


def answered(*stream: pb.AnswerEvent) -> Answer:
    events = AnswerEvents()
    for event in stream:
        events.add(event)
    return events.answer()


def test_a_selection_is_recorded_for_the_latest_block_only() -> None:
    # Turns as the search loop numbers them: the initial documents and those of the first search both have turn 0.
    record = answered(
        documents(0, "q", "a", "b"),
        selection(0, "b"),
        documents(0, "x", "c"),
        documents(0, "y", "d", "c"),
        selection(1, "c"),
        final(answer="ok", documents=[passage_to_wire(Passage("b", "B", "")), passage_to_wire(Passage("e", "E", "t"))]),
    )
    assert [(step.query, step.selected) for step in record.steps] == [("q", ("b",)), ("x", None), ("y", ("c",))]
    assert record.documents == ("b", "e")
    assert set(record.passages) == set("abcde")


def test_a_cut_answer_and_cut_documents_are_recorded() -> None:
    record = answered(final(answer="as far as", finish_reason="length", cut=["a"], left_out=["b", "c"]))
    assert (record.finish_reason, record.cut, record.left_out) == ("length", ("a",), ("b", "c"))


def test_an_empty_selection_is_a_selection() -> None:
    record = answered(documents(0, "q", "a"), selection(0), documents(0, "x", "b"), final(answer="no"))
    assert [step.selected for step in record.steps] == [(), None]


def test_a_stream_without_its_final_event_is_a_failure_and_no_answer() -> None:
    with pytest.raises(Unavailable, match="before its final event"):
        answered(documents(0, "q", "a"))


TRAJECTORY = Trajectory(
    "q",
    TokenRecord([5, 6], [False, True], [0.0, -0.5], [-1, 3], [0, 1]),
    blocks=[InformationBlock("Who?", (SearchResult(Passage("b", "B", "text"), 2.0, 1),), (1,))],
    stop_reason="completed",
)
ANSWER = Answer(
    "Ann",
    documents=("b", "a"),
    passages={"b": Passage("b", "B", "text"), "a": Passage("a", "A", "more", {"world": "w"})},
    cut=("b",),
    left_out=("c",),
    finish_reason="length",
    usage=Usage(1, 2, 3, 4, 5),
    provenance=Provenance("m", "s", "v7", ("g1", "g2"), "bm25", 3, "t", 10, 11, 0.5),
    searches=2,
    stop_reason="completed",
    policy_version="v7",
    seconds=0.25,
    trajectory=TRAJECTORY,
)


def test_every_field_of_an_answer_but_its_steps_comes_back_from_its_final_event() -> None:
    assert answered(pb.AnswerEvent(final=answer_to_wire(ANSWER, with_trajectory=True))) == ANSWER
    unset = {name for name in Answer.__slots__ if getattr(ANSWER, name) == getattr(Answer(), name)}
    assert unset == {"steps"}  # the events before the final one have them


def test_a_trajectory_is_sent_only_if_it_was_requested() -> None:
    assert answered(pb.AnswerEvent(final=answer_to_wire(ANSWER, with_trajectory=False))).trajectory is None


def test_the_steps_of_a_search_become_the_steps_of_its_record() -> None:
    results = (SearchResult(Passage("a", "A", "x"), 1.0, 1), SearchResult(Passage("b", "B", "y"), 0.5, 2))
    steps = (QueriesIssued(0, ("who",)), DocumentsFound(0, "who", results), DocumentsSelected(1, (results[1].passage,)))
    record = answered(*map(step_to_wire, (*steps, TextWritten("no"))), final(answer="no"))
    assert record.steps == (SearchStep(0, "who", ("a", "b"), ("b",)),)
    assert step_to_wire(steps[0]).query.queries == ["who"]
    assert step_to_wire(TextWritten("no")).tokens.text == "no"


def test_an_answer_from_given_passages_is_returned_without_them() -> None:
    given = replace(ANSWER, usage=Usage(1, 2))
    response = context_answer_to_wire(given)
    assert response.model == "m"
    alone = Answer("Ann", cut=("b",), left_out=("c",), finish_reason="length", usage=Usage(1, 2))
    assert context_answer_from_wire(response) == replace(alone, provenance=ANSWER.provenance)


def test_a_verdict_comes_back_with_its_tokens() -> None:
    verdict = Verdict(True, "judge", "m@1", 10, 2)
    assert verdict_from_wire(verdict_to_wire(verdict)) == verdict
