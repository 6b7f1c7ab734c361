"""The warm start: demonstrations, supervised training, and a stopped job that continues to the same weights."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from searchrl.domain.passage import Passage, SearchResult
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.processes import Interrupted
from searchrl.small_world.files import SmallWorldFiles, write_small_world
from searchrl.storage.artifact_manifest import Artifact, write_artifact
from searchrl.storage.durable_files import content_key
from services.trainer.algorithms.sft import SftReport
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.learner.model_folder import fingerprint_folder
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.small_world.untrained_model import write_untrained_model
from services.trainer.small_world.warm_start import (
    WarmStart,
    _Progress,
    gather,
    imitate,
    main,
    make_warm_start,
    parse_arguments,
)


class CorpusSearcher:
    """Finds the passages whose title the query contains."""

    def __init__(self, corpus: Path) -> None:
        import json

        rows = [json.loads(line) for line in corpus.read_text().splitlines()]
        self._passages = [Passage.from_contents(row["id"], row["contents"], row["metadata"]) for row in rows]

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        pool = [passage for passage in self._passages if passage.metadata["world"] == filters["world"]]
        found = [[passage for passage in pool if passage.title in query][:top_k] for query in queries]
        return [[SearchResult(p, 1.0, rank) for rank, p in enumerate(row, 1)] for row in found]


@pytest.fixture
def files(tmp_path: Path) -> SmallWorldFiles:
    return write_small_world(
        tmp_path / "world", train_worlds=2, test_worlds=1, questions_per_world=20, large_questions=20, scale=0.1
    )


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    write_untrained_model(tmp_path / "untrained", seed=0)
    return tmp_path / "untrained"


def job_of(files: SmallWorldFiles, output: Path, demonstrations: int = 64) -> WarmStart:
    return WarmStart(output, files.train, "unused:1", demonstrations)


async def test_demonstrations_of_a_job_are_reproducible(
    files: SmallWorldFiles, untrained: Path, tmp_path: Path
) -> None:
    job = job_of(files, tmp_path / "model")
    first, again = [await gather(job, untrained, CorpusSearcher(files.corpus)) for _ in range(2)]
    assert len(first) == 64
    assert [list(row.token_ids) for row in first] == [list(row.token_ids) for row in again]


async def test_imitation_lowers_the_loss_and_leaves_a_half_precision_model(
    files: SmallWorldFiles, untrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors import safe_open

    job = job_of(files, tmp_path / "model", demonstrations=16 * 12)
    demonstrations = await gather(job, untrained, CorpusSearcher(files.corpus))
    before = (untrained / "model.safetensors").stat().st_size
    with caplog.at_level(logging.INFO):
        imitate(job, untrained, demonstrations)
    with safe_open(job.output / "model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert (job.output / "model.safetensors").stat().st_size < 0.6 * before
    assert (job.output / "searcher.json").is_file()
    assert (job.output / "tokenizer.json").is_file()


async def test_too_few_demonstrations_are_refused(files: SmallWorldFiles, untrained: Path, tmp_path: Path) -> None:
    job = job_of(files, tmp_path / "model", demonstrations=3)
    with pytest.raises(ConfigurationError, match="at least 16 demonstrations"):
        imitate(job, untrained, await gather(job, untrained, CorpusSearcher(files.corpus)))


def test_arguments_have_the_published_defaults() -> None:
    job = parse_arguments(["--output", "out", "--questions", "train.jsonl"])
    assert job == WarmStart(Path("out"), Path("train.jsonl"), "127.0.0.1:9090", 150_000, 0)


def test_a_missing_question_file_is_a_usage_error(tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "model"), "--questions", str(tmp_path / "missing.jsonl")]) == 2


async def test_only_the_same_warm_start_continues_a_stopped_one_and_reaches_the_same_weights(
    files: SmallWorldFiles, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = job_of(files, tmp_path / "uninterrupted", demonstrations=16 * 6)
    demonstrations = await gather(uninterrupted, untrained, CorpusSearcher(files.corpus))
    imitate(uninterrupted, untrained, demonstrations)

    job = replace(uninterrupted, output=tmp_path / "stopped", checkpoints=tmp_path / "checkpoints")
    report = _Progress.report

    def stop_after_three(self: _Progress, step: SftReport) -> None:
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        report(self, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(_Progress, "report", stop_after_three)
        imitate(job, untrained, demonstrations)
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [3]
    for other, named in (
        (replace(job, seed=1), "seed"),
        (replace(job, demonstrations=16 * 7), "demonstrations"),
        (replace(job, questions=files.test), "questions"),
    ):
        with pytest.raises(ConfigurationError, match=rf"step_3, which was saved with other settings \({named}\)"):
            imitate(other, untrained, demonstrations)
    imitate(job, untrained, demonstrations)
    assert fingerprint_folder(job.output) == fingerprint_folder(uninterrupted.output)


def test_the_time_left_is_estimated_from_the_steps_since_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restored: Any = SimpleNamespace(steps=9000)
    progress = _Progress(restored, tmp_path, None)
    progress._started -= 1000
    loss = LossReport(0.0, {"action_nll": 1.0, "action_tokens": 1.0, "environment_nll": 1.0})
    with caplog.at_level(logging.INFO):
        progress.report(SftReport(9099, 9110, 1, 10, loss, OptimReport(9100, 1.0, 0.1)))
    # 100 steps took 1000 s, and 10 steps are left
    assert "100 s left" in caplog.text


def test_a_restart_leaves_the_model_of_an_interrupted_start_until_it_has_a_better_one(
    files: SmallWorldFiles, tmp_path: Path
) -> None:
    job = replace(job_of(files, tmp_path / "model"), retriever="127.0.0.1:1")
    job.output.mkdir()
    (job.output / "model.safetensors").write_text("trained")
    with pytest.raises(ServiceError):
        make_warm_start(job)
    assert [path.name for path in job.output.iterdir()] == ["model.safetensors"]
    assert (job.output / "model.safetensors").read_text() == "trained"


def test_a_finished_warm_start_is_left_alone_and_another_one_is_refused(files: SmallWorldFiles, tmp_path: Path) -> None:
    job = job_of(files, tmp_path / "model")
    job.output.mkdir()
    (job.output / "weights").write_text("trained")
    write_artifact(job.output, Artifact("model", key=content_key(job.identity())))
    make_warm_start(job)
    assert (job.output / "weights").read_text() == "trained"
    with pytest.raises(ConfigurationError, match="another model"):
        make_warm_start(replace(job, seed=1))
