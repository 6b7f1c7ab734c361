"""Runs that can never succeed end with exit code 2 and one sentence, so that a job does not retry them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.trainer.conftest import Environment, ServiceProcess, StartTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Prepare = Callable[[Environment, Path], Mapping[str, Any]]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, services: Environment) -> Iterator[ServiceProcess]:
    """A retriever over the same index that requires a key."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys.yaml"
    keys.write_text(yaml.safe_dump([{"name": "trainer", "key": "right-key", "scope": "read"}]))
    service = ServiceProcess("retriever", folder, {"INDEX_DIR": str(services.index), "AUTH_KEYS_FILE": str(keys)})
    yield service
    service.kill()


def blank_golden_answer(services: Environment, folder: Path) -> Mapping[str, Any]:
    """A question whose only golden answer is blank."""
    lines = services.questions.read_text().splitlines()
    broken = json.loads(lines[0]) | {"golden_answers": [" "]}
    path = folder / "questions.jsonl"
    path.write_text("\n".join([json.dumps(broken), *lines[1:]]) + "\n")
    return {"questions": path}


def short_context(services: Environment, folder: Path) -> Mapping[str, Any]:
    """A model whose context is shorter than the limits of its searcher."""
    shutil.copytree(services.model, folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 128}))
    return {"model": folder / "model"}


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [(blank_golden_answer, "has no golden answers"), (short_context, "has a context of 128 tokens")],
)
def test_inputs_that_cannot_be_trained_on_are_refused(
    prepare: Prepare, sentence: str, services: Environment, trainers: StartTrainer, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path / "run", settings=prepare(services, tmp_path))
    assert trainer.end() == 2, trainer.log.read_text()[-4000:]
    assert_one_sentence(trainer.log.read_text(), sentence)
    assert trainer.lines() == []


def test_a_key_that_is_refused_ends_the_run(
    guarded: ServiceProcess, services: Environment, trainers: StartTrainer, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("wrong-key")
    settings = {"services.retriever": guarded.grpc, "services.key_file": key}
    trainer = trainers(tmp_path / "run", settings=settings)
    assert trainer.end() == 2, trainer.log.read_text()[-4000:]
    assert_one_sentence(trainer.log.read_text(), "unauthenticated")
    assert trainer.lines() == []


def assert_one_sentence(log: str, sentence: str) -> None:
    last = log.strip().splitlines()[-1]
    assert last.startswith("trainer: ") and sentence in last, log
    assert "Traceback" not in log
