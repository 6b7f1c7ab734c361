"""The arguments of ``searchrl sft`` that reach the trainer's program."""

from argparse import Namespace
from pathlib import Path

import pytest

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands import sft, trajectories
from searchrl.errors import ConfigurationError
from services.trainer.sft import export_trajectories
from services.trainer.sft.__main__ import parse_arguments
from services.trainer.sft.settings import load_sft_config


def arguments(*argv: str) -> Namespace:
    parser = CommandParser("searchrl sft", "")
    sft.add_arguments(parser)
    return parser.parse(argv)


def test_files_and_settings_reach_the_run_and_the_last_setting_wins(tmp_path: Path) -> None:
    files = [tmp_path / "a, b.jsonl", tmp_path / "c.parquet"]
    for file in files:
        file.touch()
    data = [word for file in files for word in ("--data", str(file))]
    settings = ["--set", "training.epochs=3", "--set", "output=last"]
    given = arguments("--model", "m", "--output", "o", *data, *settings, "--new", "--dry-run")
    parsed = parse_arguments(sft.sft_arguments(given))
    config = load_sft_config(None, parsed.set)
    assert (config.data, config.model, config.output) == (tuple(files), Path("m"), Path("last"))
    assert config.training.epochs == 3 and parsed.new and parsed.dry_run


def test_other_flags_are_passed_on_to_the_trainers_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(sft, "run_module", lambda module, given: called.append([module, *given]))
    sft.run(arguments("--resume", str(tmp_path), "--unfinished-exit-code", "3"))
    assert called == [["services.trainer.sft", "--resume", str(tmp_path), "--unfinished-exit-code", "3"]]


def test_the_export_of_trajectories_is_the_trainers_program(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(trajectories, "run_module", lambda module, given: called.append([module, *given]))
    parser = CommandParser("searchrl trajectories", "")
    trajectories.add_arguments(parser)
    flags = ["--run", "runs/first", "--output", "best.parquet", "--min-reward", "1", "--best", "2"]
    trajectories.run(parser.parse(["export", *flags]))
    assert called == [["services.trainer.sft.export_trajectories", *flags]]
    parsed = export_trajectories.parse_arguments(flags)
    assert (parsed.run, parsed.min_reward, parsed.best, parsed.form) == ([Path("runs/first")], 1.0, 2, "tokens")
    with pytest.raises(ConfigurationError, match="invalid choice: 'import'"):
        parser.parse(["import"])


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "say what to train on"),
        (["--data", "nowhere.jsonl"], "--data: there is no file nowhere.jsonl"),
        (["--config", "nowhere.yaml"], "--config: there is no file nowhere.yaml"),
        (["--resume", "nowhere"], "--resume: there is no folder nowhere"),
    ],
)
def test_what_is_missing_is_named(argv: list[str], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        sft.sft_arguments(arguments(*argv))
