"""A run is continued only as it was started, and a refusal changes nothing in its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from searchrl.errors import ConfigurationError
from searchrl.small_world.files import WARM_START_FOLDER
from services.trainer import wiring
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.rollouts.task_source import TaskSource
from tests.fakes.small_run import QUESTIONS, SmallRun, run_config, write_questions

CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("seed", {"seed": 5}),
    ("group layout", {"rollouts__group_size": 6}),
    ("dtype", {"learner__dtype": "bfloat16"}),
    ("adapter", {"learner__adapter": {"kind": "lora", "rank": 4}}),
    ("algorithm", {"algorithm__kind": "ppo"}),
    ("optimizer", {"update__optim__kind": "muon"}),
    ("temperature", {"temperature": 0.5}),
    ("reward costs", {"reward__document_cost": 0.2}),
    ("search mode", {"services__retrieval_mode": "dense"}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
async def test_resuming_with_something_else_is_refused_and_touches_nothing(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    await SmallRun(tmp_path, steps=1).train()
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigurationError, match=f"its {name} was .*, now it is .*; use what the run was started with"):
        await SmallRun(tmp_path, **change).train(resume=True)
    assert contents(tmp_path / "run") == before


def test_a_run_that_published_its_adapter_alone_is_not_resumed_with_complete_weights(tmp_path: Path) -> None:
    config = run_config(tmp_path, learner__adapter={"kind": "lora"})
    source = TaskSource(QUESTIONS, 0)
    found: dict[str, dict[str, str]] = {}
    for backend in ("shared_fs", "lora_adapter"):
        engine = VllmEngineSettings.model_validate({"weight_transfer": {"backend": backend}})
        found[backend] = wiring.describe_identity(config.model_copy(update={"engine": engine}), source)
    assert dict(found["lora_adapter"].items() - found["shared_fs"].items()) == {"published weights": "of the adapter"}


async def test_resuming_with_another_judge_is_refused_and_touches_nothing(tmp_path: Path, monkeypatch) -> None:
    judges = iter(["judge@1", "judge@2"])

    async def pins(*_: Any) -> dict[str, str]:
        return {"judge": next(judges)}

    monkeypatch.setattr(wiring, "pin_services", pins)
    await SmallRun(tmp_path, steps=1).train()
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="its judge was judge@1, now it is judge@2"):
        await SmallRun(tmp_path).train(resume=True)
    assert contents(tmp_path / "run") == before


async def test_a_resume_that_restores_other_weights_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    await SmallRun(tmp_path, steps=1).train()
    run = tmp_path / "run"
    manifest = run / "checkpoints" / "step_1" / "manifest.json"
    saved = json.loads(manifest.read_text())
    saved["metadata"]["fingerprint"] = "0" * 64
    manifest.write_text(json.dumps(saved))
    for leftover in (run / "checkpoints" / "step_2" / "damaged", run / "untrained" / "unfinished"):
        leftover.parent.mkdir()
        leftover.touch()
    before = contents(run)
    with pytest.raises(ConfigurationError, match="are not those that were saved there"):
        await SmallRun(tmp_path, steps=1).train(resume=True)
    assert contents(run) == before


async def test_resuming_with_other_questions_or_another_model_is_refused(tmp_path: Path) -> None:
    await SmallRun(tmp_path, steps=1).train()
    write_questions(tmp_path / "questions.jsonl", QUESTIONS[1:])
    with pytest.raises(ConfigurationError, match="its questions was"):
        await SmallRun(tmp_path).train(resume=True)
    write_questions(tmp_path / "questions.jsonl")
    other = tmp_path / "other"
    shutil.copytree(WARM_START_FOLDER, other)
    profile = (other / "searcher.json").read_text()
    (other / "searcher.json").write_text(profile.replace('"max_searches": 3', '"max_searches": 2'))
    with pytest.raises(ConfigurationError, match="its model was"):
        await SmallRun(tmp_path, model=str(other)).train(resume=True)


async def test_resuming_on_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    await SmallRun(tmp_path, steps=1).train()
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="CUDA devices; use device cpu"):
        await SmallRun(tmp_path, learner__device="cuda:7").train(resume=True)
    assert contents(tmp_path / "run") == before


async def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    await SmallRun(tmp_path, steps=1).train()
    leftover = tmp_path / "run" / "untrained" / "unfinished"
    leftover.parent.mkdir()
    leftover.touch()
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="holds a run already"):
        await SmallRun(tmp_path, steps=2).train()
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
