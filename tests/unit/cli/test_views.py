"""The text that the views show on the terminal."""

import io

import pytest
from rich.console import Console

from searchrl.cli.views import AnswerView, run_table
from searchrl.contracts.v1 import evaluator_pb2, generator_pb2, passage_pb2
from searchrl.local.instance import ServiceRecord
from searchrl.local.service_table import call_lines, service_table


def console() -> Console:
    return Console(file=io.StringIO(), width=160)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_the_steps_of_an_answer_are_shown_as_text() -> None:
    passage = passage_pb2.Passage(id="p1", title="Amber Falcon", text="Amber Falcon was\ndirected by Ada [Moss].")
    results = [passage_pb2.SearchResult(passage=passage, rank=1, score=2.0)]
    pb = generator_pb2
    screen = console()
    view = AnswerView(screen)
    for event in (
        pb.AnswerEvent(query=pb.QueryStep(turn=1, queries=["Amber Falcon director"])),
        pb.AnswerEvent(documents=pb.DocumentsStep(turn=1, query="q", results=results)),
        pb.AnswerEvent(selection=pb.SelectionStep(turn=2, passage_ids=["p1"])),
        pb.AnswerEvent(tokens=pb.TokensStep(text="Ada ")),
        pb.AnswerEvent(tokens=pb.TokensStep(text="Moss")),
        pb.AnswerEvent(final=pb.FinalStep(answer="Ada Moss", citations=["p1"], documents=[passage], searches=1)),
    ):
        view.show(event)
    lines = [line.strip() for line in text_of(screen).splitlines()]
    assert lines[:5] == [
        "search  Amber Falcon director",
        "found 1  Amber Falcon · Amber Falcon was directed by Ada [Moss].",
        "keep  Amber Falcon",
        "answer  Ada Moss",
        "cites  Amber Falcon [p1]",
    ]
    assert lines[5].startswith("1 search · 1 document · ")


def test_an_answer_without_streamed_text_is_shown_at_the_end() -> None:
    screen = console()
    AnswerView(screen).show(generator_pb2.AnswerEvent(final=generator_pb2.FinalStep(answer="yes")))
    assert "answer  yes" in text_of(screen)


def test_a_run_shows_the_main_metrics() -> None:
    pb = evaluator_pb2
    accuracy = pb.MetricValue(name="accuracy", mean=0.5, low=0.25, high=0.75, count=8)
    other = pb.MetricValue(name="something_else", mean=1, count=8)
    method = pb.MethodResult(label="rag", done=8, failed=1, total=9, metrics=[accuracy, other])
    screen = console()
    screen.print(run_table(pb.EvaluationRun(run_id="r1", state="running", methods=[method])))
    shown = text_of(screen)
    assert "r1: running" in shown and "8/9 (1 failed)" in shown and "0.50 (0.25–0.75)" in shown
    assert "something_else" not in shown


def test_the_lines_to_call_services_name_their_addresses_and_the_key() -> None:
    services = {
        name: ServiceRecord("ready", http=f"h:{number}", grpc=f"g:{number}")
        for number, name in enumerate(("retriever", "generator", "evaluator", "trainer"))
    }
    open_lines, guarded = call_lines(services, has_keys=False), call_lines(services, has_keys=True)
    assert len(open_lines) == 6
    assert any("grpcurl" in line and "g:1" in line and "Generator/Answer" in line for line in open_lines)
    assert not any("authorization" in line for line in open_lines)
    assert all("authorization: Bearer KEY" in line for line in guarded)


def test_services_that_do_not_run_have_no_lines() -> None:
    assert call_lines({"retriever": ServiceRecord("starting")}, has_keys=False) == []


@pytest.mark.parametrize(("record", "color"), [
    (ServiceRecord("ready"), "green"),
    (ServiceRecord("ended", exit_code=0), "green"),
    (ServiceRecord("ended", exit_code=1), "red"),
    (ServiceRecord("waiting", exit_code=1), "yellow"),
    (ServiceRecord("stopped"), "default"),
])  # fmt: skip
def test_the_color_of_a_state_tells_a_failed_job_from_one_that_succeeded(record: ServiceRecord, color: str) -> None:
    (state,) = service_table({"trainer": record}).columns[1].cells
    assert str(state).startswith(f"[{color}]{record.state}")
