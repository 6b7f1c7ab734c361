"""Tests that the evaluator's pages work in a browser as served, with their content security policy."""

import asyncio
from pathlib import Path

import httpx
import uvicorn
from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from services.evaluator import wiring
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.records.evaluation_run import MethodSpec, RunSpec
from services.evaluator.runs.run_executor import RunExecutor, RunSettings
from services.evaluator.store.run_store import RunStore
from tests.fakes.scripted_generator import ScriptedGenerator, right, wrong


async def test_pages_open_in_the_browser_under_their_policy(open_page, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"id": "a", "question": "Who?", "answer": "Ann", "gold_doc_ids": ["p"]}\n')
    metrics = EvaluatorMetrics(CollectorRegistry())
    generator = ScriptedGenerator({"rag": wrong, "s3": right})
    store = RunStore.open(tmp_path / "results.sqlite")
    executor = RunExecutor(store, generator, None, metrics, RunSettings())
    service = EvaluationService(store, generator, None, executor, metrics, questions_dir=tmp_path)
    await service.create_run(RunSpec("r1", str(questions), (MethodSpec("rag"), MethodSpec("s3"))))
    await service.wait_for_run("r1")
    health = Health()
    health.set_ready()
    app = wiring.service_spec(service, KeyRing(), health, metrics).build_http_app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        for path in ("/", "/runs/r1", "/v1/runs/r1/report"):
            page = await asyncio.to_thread(open_page, address + path)
            assert page.console == [], path
            assert "r1" in page.dom
            assert "<button" in page.dom  # the script has run
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{address}/v1/runs/none/report")).status_code == 404
    finally:
        server.should_exit = True
        await serving
        await service.stop()
