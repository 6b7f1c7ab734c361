"""The arguments of ``searchrl train`` that reach the trainer."""

import os
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands import train
from searchrl.errors import ConfigurationError
from searchrl.local.instance import Instance, ServiceRecord
from services.trainer.settings import preset_names

PROCESS = ["--set", "listen.http_port=0", "--set", "listen.grpc_port=0", "--set", "log_format=text"]


def arguments(*argv: str) -> Namespace:
    parser = CommandParser("searchrl train", "")
    train.add_arguments(parser)
    return parser.parse(argv)


def test_a_preset_and_settings_are_assignments_and_the_last_one_wins(tmp_path: Path) -> None:
    given = arguments("--preset", "s3", "--model", "m", "--set", "steps=3", "--folder", str(tmp_path))
    expected = [*PROCESS, "--set", "preset=s3", "--set", "model=m", "--set", "steps=3"]
    assert train.trainer_arguments(given) == expected


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_dry_run_is_the_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(train, "run_module", lambda module, given: called.append([module, *given]))
    train.run(arguments("--preset", "s3", "--folder", str(tmp_path), *flags))
    assert called == [["services.trainer", *PROCESS, "--set", "preset=s3", *flags]]


def test_every_preset_is_named_by_the_help() -> None:
    parser = CommandParser("searchrl train", "")
    train.add_arguments(parser)
    assert set(preset_names()) <= set(parser.format_help().replace(",", "").split())


def test_a_new_run_may_be_asked_for() -> None:
    given = train.trainer_arguments(arguments("--preset", "s3", "--new", "--folder", "nowhere"))
    assert given == ["--new", *PROCESS, "--set", "preset=s3"]


def test_a_run_file_is_passed_on(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("")
    assert train.trainer_arguments(arguments("--config", str(config))) == ["--config", str(config), *PROCESS]


def test_services_that_run_in_the_folder_are_used(tmp_path: Path) -> None:
    services = {"retriever": ServiceRecord("ready", grpc="h:1"), "generator": ServiceRecord("ready", grpc="h:2")}
    started = psutil.Process().create_time()
    Instance(str(tmp_path), os.getpid(), started, "ready", "0", {}, services).write()
    given = train.trainer_arguments(arguments("--preset", "s3", "--folder", str(tmp_path)))
    assert "services.retriever=h:1" in given and "services.generator=h:2" in given


def test_a_folder_to_resume_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no folder"):
        train.trainer_arguments(arguments("--resume", str(tmp_path / "nowhere")))


def test_ray_is_one_actor_unless_a_setting_says_more(tmp_path: Path) -> None:
    plain = arguments("--preset", "s3", "--ray", "--folder", str(tmp_path))
    assert train.trainer_arguments(plain) == [*PROCESS, "--set", "preset=s3", "--set", "learner.ranks=1"]
    more = arguments("--preset", "s3", "--ray", "--set", "learner.ranks=2", "--folder", str(tmp_path))
    assert train.trainer_arguments(more)[-2:] == ["--set", "learner.ranks=2"]


def test_validation_questions_are_a_setting_and_must_exist(tmp_path: Path) -> None:
    flags = ("--preset", "s3", "--folder", "nowhere", "--validation", str(tmp_path / "dev.jsonl"))
    with pytest.raises(ConfigurationError, match="--validation: there is no file"):
        train.trainer_arguments(arguments(*flags))
    (tmp_path / "dev.jsonl").touch()
    assert train.trainer_arguments(arguments(*flags))[-1] == f"validation.questions={tmp_path / 'dev.jsonl'}"
