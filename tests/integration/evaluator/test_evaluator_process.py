"""The real process answers on both transports, survives being killed, and stops cleanly in the middle of a run."""

import asyncio
from pathlib import Path

import httpx
import pytest

from searchrl.clients.evaluator_client import EvaluatorClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.errors import Conflict, NotFound
from services.evaluator.store.run_store import RunStore

METHODS = [pb.MethodSpec(method="rag"), pb.MethodSpec(method="s3", temperature=0.7)]


async def done_of(client: EvaluatorClient, run_id: str, at_least: int) -> int:
    """Watch a run until at least this number of episodes is done; returns the number."""
    async for run in client.watch_run(run_id):
        done = sum(method.done for method in run.methods)
        if done >= at_least:
            return done
    raise AssertionError("the run ended before")


async def watch_to_end(client: EvaluatorClient, run_id: str) -> pb.EvaluationRun:
    return [run async for run in client.watch_run(run_id)][-1]


async def test_a_run_finishes_and_both_transports_show_it(start_generator, start_evaluator, question_file) -> None:
    evaluator = start_evaluator(start_generator(0.0))
    async with EvaluatorClient(evaluator.grpc) as client, httpx.AsyncClient(base_url=evaluator.http) as http:
        created = await client.create_run("r.1", str(question_file), METHODS, controls=True)
        assert created.state in ("running", "finished")
        run = await watch_to_end(client, "r.1")
        assert run.state == "finished"
        accuracy = {m.label: next(v.mean for v in m.metrics if v.name == "accuracy") for m in run.methods}
        assert accuracy == pytest.approx({"rag": 1 / 3, "s3": 1, "direct": 0, "oracle": 1, "random_retriever": 0})
        by_rest = (await http.get("/v1/runs/r.1")).json()
        assert by_rest["questions_sha256"] == run.questions_sha256
        assert [r.run_id for r in await client.list_runs()] == ["r.1"]
        with pytest.raises(Conflict):
            await client.create_run("r.1", str(question_file), METHODS[:1])
        with pytest.raises(NotFound):
            await client.get_run("none")
        start = await http.get("/")
        assert 'href="runs/r.1"' in start.text
        page = await http.get("/runs/r.1")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert (await client.get_report("r.1", "json")).startswith(b"{")
        metrics = (await http.get("/metrics")).text
        assert 'searchrl_evaluator_episodes_total{outcome="correct"}' in metrics
        assert 'searchrl_evaluator_runs_total{state="finished"} 1.0' in metrics
    assert evaluator.stop() == 0


async def test_a_killed_process_loses_only_what_was_in_flight(
    start_generator, start_evaluator, question_file: Path, tmp_path: Path
) -> None:
    generator = start_generator(0.03)
    first = start_evaluator(generator)
    async with EvaluatorClient(first.grpc) as client:
        await client.create_run("r1", str(question_file), METHODS, concurrency=2)
        seen = await done_of(client, "r1", 20)
    first.kill()
    stored = RunStore.open_for_reading(tmp_path / "results.sqlite").episodes("r1")
    assert seen - 2 <= len(stored) < 120
    second = start_evaluator(generator)
    async with EvaluatorClient(second.grpc) as client:
        run = await watch_to_end(client, "r1")
    assert run.state == "finished"
    assert [(m.done, m.failed) for m in run.methods] == [(60, 0), (60, 0)]
    rows = {
        (row.label, row.question_id): row
        for row in RunStore.open_for_reading(tmp_path / "results.sqlite").episodes("r1")
    }
    assert all(rows[row.label, row.question_id] == row for row in stored)


async def test_sigterm_during_a_run_ends_watches_and_keeps_the_run(
    start_generator, start_evaluator, question_file: Path
) -> None:
    generator = start_generator(0.05)
    first = start_evaluator(generator)
    async with EvaluatorClient(first.grpc) as client:
        await client.create_run("r1", str(question_file), METHODS, concurrency=2)
        await done_of(client, "r1", 4)
        watch = client.watch_run("r1")
        seen = await anext(watch)
        stopping = asyncio.create_task(asyncio.to_thread(first.stop))
        async for seen in watch:
            assert seen.state in ("running", "")
        assert seen.state in ("running", "")
        assert await stopping == 0
    second = start_evaluator(generator)
    async with EvaluatorClient(second.grpc) as client:
        assert (await watch_to_end(client, "r1")).state == "finished"


async def test_a_second_evaluator_on_the_same_store_is_refused(start_generator, start_evaluator, capfd) -> None:
    generator = start_generator(0.0)
    start_evaluator(generator)
    with pytest.raises(AssertionError, match="ended before"):
        start_evaluator(generator)
    assert "another evaluator writes to" in capfd.readouterr().err
