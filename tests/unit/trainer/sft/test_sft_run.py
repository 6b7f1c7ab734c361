"""Supervised runs from data files to an exported model: metrics, resume to the bit, refusals, adapters."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.trainer.algorithms.sft import SftReport
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.model_folder import fingerprint_folder, load_language_model
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.sft import sft_run
from services.trainer.sft.__main__ import main
from services.trainer.sft.settings import load_sft_config
from tests.fakes.tiny_llm import make_tiny_llm

ROWS = 10
FAST = ("training.batch_rows=4", "training.epochs=2", "training.optim.learning_rate=0.003", "logging.trackers=[]")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_llm(tmp_path_factory.mktemp("llm") / "model", max_positions=128)
    (folder / "searcher.json").write_text('{"protocol": "s3"}')
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten conversations of two or four messages, and one that is longer than the model's context."""
    rows: list[list[dict[str, str]]] = []
    for number in range(ROWS):
        turn = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"{number} " * 3}]
        rows.append(turn * (1 + number % 2))
    rows.append([{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}])
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


@pytest.fixture(autouse=True)
def keep_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program would replace the log handlers of this process."""
    monkeypatch.setattr("services.trainer.sft.__main__.set_up_logging", lambda *_: None)


def start(model: Path, data: Path, output: Path, *settings: str, flags: tuple[str, ...] = ()) -> int:
    assignments = [f"model={model}", f"data={data}", f"output={output}", *FAST, *settings]
    # the handlers are those of the process; pytest needs its own back
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return main([*flags, *(part for assignment in assignments for part in ("--set", assignment))])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_every_row_records_each_step_and_exports_a_model(
    model: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    with caplog.at_level("INFO"):
        assert start(model, data, output, "logging.trackers=tensorboard") == 0
    lines = lines_of(output)
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sum(line["rows"] for line in lines) == 2 * ROWS
    assert lines[-1]["action_nll"] < lines[0]["action_nll"] - 0.3
    assert lines[0]["environment_tokens"] == 0 and lines[0]["learning_rate"] == 0.003 > lines[-1]["learning_rate"] > 0
    final = output / "final"
    assert {"config.json", "tokenizer.json", "searcher.json", "manifest.json"} <= {p.name for p in final.iterdir()}
    load_language_model(final, torch.float32)
    assert f"1 left out as longer than 128 tokens: {data}, line {ROWS + 1} (" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--resume", "FOLDER"], "--resume: FOLDER holds no run: it has no run.yaml"),
        (["--resume", "FOLDER", "--config", "nowhere.yaml"], "cannot read the settings file nowhere.yaml"),
        (["--resum", "FOLDER"], "unknown flag '--resum': did you mean '--resume'?"),
    ],
)
def test_a_run_that_is_not_described_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], reason: str
) -> None:
    assert main([word.replace("FOLDER", str(tmp_path)) for word in argv]) == 2
    assert f"sft: {reason.replace('FOLDER', str(tmp_path))}" in capsys.readouterr().err


def test_a_finished_run_is_left_unchanged(model: Path, data: Path, tmp_path: Path) -> None:
    assert start(model, data, tmp_path / "run") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "final").iterdir()}
    assert start(model, data, tmp_path / "run") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert start(model, data, tmp_path / "run", flags=("--new",)) == 2


@pytest.mark.parametrize("adapter", [(), ("learner.adapter.kind=lora", "learner.adapter.rank=4")], ids=["all", "lora"])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: tuple[str, ...]
) -> None:
    assert start(model, data, tmp_path / "whole", *adapter) == 0
    record = sft_run._Records.record

    def stop_after_three(self: sft_run._Records, report: SftReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        record(self, report)

    with monkeypatch.context() as patch:
        patch.setattr(sft_run._Records, "record", stop_after_three)
        assert start(model, data, tmp_path / "run", *adapter, flags=("--unfinished-exit-code", "7")) == 7
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "final").exists()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    final = [tmp_path / name / "final" for name in ("whole", "run")]
    assert fingerprint_folder(final[0]) == fingerprint_folder(final[1]) != fingerprint_folder(model)
    assert all((folder / "adapter").is_dir() == bool(adapter) for folder in final)


def test_a_killed_run_continues_from_its_checkpoint_and_repeats_the_steps_after_it(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = sft_run._Records.record

    def die_in_the_fifth(self: sft_run._Records, report: SftReport) -> None:
        record(self, report)
        if report.step == 4:
            raise KeyboardInterrupt

    assert start(model, data, tmp_path / "whole") == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft_run._Records, "record", die_in_the_fifth)
        start(model, data, tmp_path / "run", "checkpoints.every=2")
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert start(model, data, tmp_path / "run", "checkpoints.every=2") == 0
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert fingerprint_folder(tmp_path / "whole" / "final") == fingerprint_folder(tmp_path / "run" / "final")


class InProcess:
    """One rank in the test's own process."""

    def __init__(self, group: LearnerGroup) -> None:
        self._group = group

    @classmethod
    def start(cls, settings: LearnerSettings, build: Callable[[Ranks], LearnerGroup]) -> "InProcess":
        assert settings.ranks == 1
        return cls(build(ALONE))

    def run(self, job: Callable[..., Any], *arguments: object) -> list[Any]:
        return [job(self._group, *arguments)]

    def close(self) -> None:
        pass


def test_ranks_train_save_resume_and_export_as_one_process_does(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = [f"model={model}", f"data={data}", *FAST]
    alone, ranked = (load_sft_config(None, [*config, f"output={tmp_path / name}"]) for name in ("alone", "ranked"))
    rows, stop = sft_run.read_data(alone), sft_run.StopRequest(is_set=True)
    assert sft_run.train(alone, rows, sft_run.StopRequest(), resume=False)
    monkeypatch.setattr("services.trainer.learner.ray_ranks.RayRanks", InProcess)
    ranked = ranked.model_copy(update={"learner": LearnerSettings(ranks=1)})
    assert not sft_run.train(ranked, rows, stop, resume=False)  # after the first step
    assert sft_run.train(ranked, rows, sft_run.StopRequest(), resume=True)
    assert [line["step"] for line in lines_of(tmp_path / "ranked")] == [1, 2, 3, 4, 5, 6]
    assert fingerprint_folder(tmp_path / "alone" / "final") == fingerprint_folder(tmp_path / "ranked" / "final")
    assert not (tmp_path / "ranked" / "ranks").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("seed=1", "seed was 0, now it is 1"),
        ("training.epochs=3", "epochs was 2, now it is 3"),
        ("training.batch_rows=5", "batches was 4 rows"),
        ("trained_messages=last", "rows was"),
        ("learner.adapter.kind=lora", "adapter was none"),
    ],
)
def test_a_resume_with_something_else_is_refused_and_changes_nothing(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, named: str
) -> None:
    output = tmp_path / "run"
    assert start(model, data, output) == 0
    (output / "final" / "manifest.json").unlink()  # as if the process had ended before its export
    before = (output / "run.yaml").read_text()
    assert start(model, data, output, setting) == 2
    assert named in capsys.readouterr().err
    assert (output / "run.yaml").read_text() == before and len(lines_of(output)) == 6


def test_a_dry_run_reads_all_rows_and_writes_nothing(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(model, data, tmp_path / "run", flags=("--dry-run",)) == 0
    shown = capsys.readouterr().out
    assert f"rows: {ROWS} rows of" in shown and "1 left out as longer than 128" in shown and "steps: 6" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("max_tokens=129", "the model's context has 128 tokens"),
        ("model=nowhere", "there is no model folder nowhere"),
        ("data=[nothing.jsonl]", "there is no data file nothing.jsonl"),
        ("training.epoch=1", "did you mean 'epochs'"),
    ],
)
def test_a_run_that_cannot_start_is_refused_with_a_sentence(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, reason: str
) -> None:
    assert start(model, data, tmp_path / "run", setting) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.yaml").exists()
