"""Fixtures for the tests of the evaluator: a question file, a store and services."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.runs.episode_runner import AnsweringGenerator
from services.evaluator.runs.run_executor import EPISODE_RETRIES, RemotePassages, RunExecutor, RunSettings
from services.evaluator.store.run_store import RunStore

MakeService = Callable[..., EvaluationService]


async def no_wait(seconds: float) -> None:
    """Replaces the waits between attempts."""


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    """Ten questions of one, two or three hops."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {
            "id": f"q{number}",
            "question": f"Who leads company {number}?",
            "golden_answers": [f"Person {number}"],
            "gold_doc_ids": [f"p{number}a", f"p{number}b"],
            "metadata": {"hops": str(1 + number % 3)},
        }
        for number in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore.open(tmp_path / "results.sqlite")
    yield opened
    opened.close()


@pytest.fixture
async def make_service(store: RunStore) -> AsyncIterator[MakeService]:
    """Build services on the test's store; they are stopped at the end."""
    made: list[EvaluationService] = []

    def make(
        generator: AnsweringGenerator,
        passages: RemotePassages | None = None,
        questions_dir: Path | None = Path("/"),
        **settings: int,
    ) -> EvaluationService:
        metrics = EvaluatorMetrics(CollectorRegistry())
        executor = RunExecutor(
            store,
            generator,
            passages,
            metrics,
            RunSettings(**{"attempts": 3, "passes": 1, **settings}),  # pyright: ignore[reportArgumentType]
            retries=replace(EPISODE_RETRIES, sleep=no_wait),
        )
        service = EvaluationService(
            store, generator, passages, executor, metrics, questions_dir=questions_dir, watch_seconds=0.0
        )
        made.append(service)
        return service

    yield make
    for service in made:
        await service.stop()
