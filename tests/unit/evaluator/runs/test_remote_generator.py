"""The events of the generator become the evaluator's record of an answer."""

from typing import Any

import pytest

from searchrl.clients.generator_client import GeneratorClient
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1.trajectory_pb2 import Trajectory
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.errors import Unavailable
from searchrl.wire.passage_codec import passage_to_wire, result_to_wire
from services.evaluator.records.evaluation_run import MethodSpec
from services.evaluator.runs.remote_generator import AnswerEvents, RemoteGenerator
from tests.fakes.generator_server import start


def documents(turn: int, query: str, *ids: str) -> pb.AnswerEvent:
    results = [result_to_wire(SearchResult(Passage(name, name.upper(), ""), 1.0, 1)) for name in ids]
    return pb.AnswerEvent(documents=pb.DocumentsStep(turn=turn, query=query, results=results))


def selection(turn: int, *ids: str) -> pb.AnswerEvent:
    return pb.AnswerEvent(selection=pb.SelectionStep(turn=turn, passage_ids=ids))


def final(**fields: Any) -> pb.AnswerEvent:
    return pb.AnswerEvent(final=pb.FinalStep(**fields))


def answered(*stream: pb.AnswerEvent):
    events = AnswerEvents()
    for event in stream:
        events.add(event)
    return events.answered()


def test_a_selection_speaks_of_the_blocks_shown_last() -> None:
    record = answered(
        documents(0, "q", "a", "b"),
        selection(1, "b"),
        documents(1, "x", "c"),
        documents(1, "y", "d", "c"),
        selection(2, "c"),
        final(answer="ok", documents=[passage_to_wire(Passage("b", "B", "")), passage_to_wire(Passage("e", "E", "t"))]),
    )
    assert [(step.query, step.selected) for step in record.steps] == [("q", ("b",)), ("x", ("c",)), ("y", ("c",))]
    assert record.documents == ("b", "e")
    assert set(record.passages) == set("abcde")


def test_a_cut_answer_and_cut_documents_are_recorded() -> None:
    record = answered(final(answer="as far as", finish_reason="length", cut=["a"], left_out=["b", "c"]))
    assert (record.finish_reason, record.cut, record.left_out) == ("length", ("a",), ("b", "c"))


def test_an_empty_selection_is_a_selection() -> None:
    record = answered(documents(0, "q", "a"), selection(1), documents(1, "x", "b"), final(answer="no"))
    assert [step.selected for step in record.steps] == [(), None]


def test_a_stream_without_its_final_event_is_a_failure_and_no_answer() -> None:
    with pytest.raises(Unavailable, match="before its final event"):
        answered(documents(0, "q", "a"))


def test_a_trajectory_is_kept_as_it_came() -> None:
    trajectory = Trajectory(question_id="q1", stop_reason="completed")
    record = answered(final(answer="x", trajectory=trajectory))
    assert Trajectory.FromString(record.trajectory) == trajectory
    assert answered(final(answer="x")).trajectory == b""


async def test_it_speaks_to_a_generator_over_the_wire() -> None:
    server, port = await start()
    async with GeneratorClient(f"127.0.0.1:{port}") as client:
        generator = RemoteGenerator(client)
        question = Question("q", "Who?", ("Ann",), metadata={"hops": "2"}, gold_passage_ids=("a", "b"))
        record = await generator.answer(question, MethodSpec("s3"))
        assert (record.answer, record.documents, record.searches) == ("Ann", ("a", "b"), 2)
        assert (await generator.judge("Who?", "Ann", ["Ann"])).decided_by == "span"
        assert "s3" in await generator.list_methods()
    await server.stop(None)
