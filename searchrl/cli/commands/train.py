"""Command that trains a searcher: the trainer as a job in this terminal."""

import argparse
from pathlib import Path

from searchrl.cli.command_parser import CommandParser, forward_run, run_module
from searchrl.errors import ConfigurationError
from searchrl.local.instance import DEFAULT_FOLDER, Instance

TRAINER_MODULE = "services.trainer"


def add_arguments(parser: CommandParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    parser.pass_on(TRAINER_MODULE)


def add_run_arguments(parser: CommandParser) -> None:
    """Add the arguments that describe a run."""
    add = parser.add_argument
    add("--config", type=Path, help="YAML file of the run; may name a preset")
    add("--preset", help="settings to start from: small_world, s3, search_r1_ppo, search_r1_grpo, verl_search")
    add("--resume", type=Path, metavar="DIR", help="run folder to continue")
    add("--model", type=Path, help="folder of the searcher to start from")
    add("--questions", type=Path, help="training questions, JSON lines, a JSON array, CSV or parquet")
    add("--validation", type=Path, metavar="FILE", help="questions that are not trained on, for validations")
    add("--output", type=Path, help="run folder; a run that it holds is resumed")
    add("--new", action="store_true", help="refuse a run folder that holds a run")
    add("--ray", action="store_true", help="the learner as a Ray actor; --set learner.ranks=N for several")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting of the run")
    add("--folder", type=Path, default=DEFAULT_FOLDER, help=f"services that 'up' runs there (default {DEFAULT_FOLDER})")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes are the trainer's: 0 done or stopped with a checkpoint, 1 failed, 2 unusable configuration."""
    dry_run = ["--dry-run"] if arguments.dry_run else []
    return run_module(TRAINER_MODULE, [*trainer_arguments(arguments), *dry_run, *arguments.passed_on])


def trainer_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the trainer's own arguments. Services that run in the folder are used unless others are named.

    Raises:
        ConfigurationError: no run is described, or a file is missing.
    """
    if not (arguments.config or arguments.preset or arguments.resume):
        raise ConfigurationError("say what to train: --config FILE, --preset NAME or --resume DIR")
    named = {name: getattr(arguments, name) for name in ("preset", "model", "questions", "output")}
    named["validation.questions"] = arguments.validation
    assignments = [f"{name}={value}" for name, value in named.items() if value is not None]
    if arguments.ray:
        assignments.append("learner.ranks=1")
    # The defaults first, because of two assignments of a setting the later one wins.
    return forward_run(arguments, ["questions", "validation"], [*_defaults(arguments), *assignments])


def _defaults(arguments: argparse.Namespace) -> list[str]:
    """Return settings with the lowest precedence: free ports, and the addresses of services in the folder.

    A run file or a resumed run has addresses of its own, which ``--set`` would override.
    """
    defaults = ["listen.http_port=0", "listen.grpc_port=0", "log_format=text"]
    if arguments.config is not None or arguments.resume is not None:
        return defaults
    instance = Instance.read(arguments.folder)
    if instance is None or not instance.is_alive:
        return defaults
    for service in ("retriever", "generator"):
        record = instance.services.get(service)
        if record is not None and record.grpc:
            defaults.append(f"services.{service}={record.grpc}")
    return defaults
