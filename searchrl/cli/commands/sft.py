"""Command that trains a model on rows of the user's own: the trainer's supervised training in this terminal."""

import argparse
import json
from pathlib import Path

from searchrl.cli.command_parser import CommandParser, forward_run, run_module
from searchrl.errors import ConfigurationError

SFT_MODULE = "services.trainer.sft"


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, help="YAML file of the run")
    add("--resume", type=Path, metavar="DIR", help="run folder to continue")
    add("--model", type=Path, help="folder of the model to start from")
    add(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="rows with messages, or prompt and completion: JSON lines, a JSON array or parquet; may be repeated",
    )
    add("--output", type=Path, help="run folder; a run that it holds is resumed")
    add("--new", action="store_true", help="refuse a run folder that holds a run")
    add("--dry-run", action="store_true", help="read all rows, print the plan, train nothing")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting of the run")
    parser.pass_on(SFT_MODULE)


def run(arguments: argparse.Namespace) -> int:
    """Exit codes are the program's: 0 done or stopped with a checkpoint, 1 failed, 2 unusable configuration."""
    return run_module(SFT_MODULE, [*sft_arguments(arguments), *arguments.passed_on])


def sft_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of the trainer's program.

    Raises:
        ConfigurationError: no run is described, or a file is missing.
    """
    if not (arguments.config or arguments.resume or arguments.data):
        raise ConfigurationError("say what to train on: --data FILE, --config FILE or --resume DIR")
    assignments = [f"{name}={getattr(arguments, name)}" for name in ("model", "output") if getattr(arguments, name)]
    if arguments.data:
        assignments.append(f"data={json.dumps([str(path) for path in arguments.data])}")
    dry_run = ["--dry-run"] if arguments.dry_run else []
    return [*forward_run(arguments, ["data"], assignments), *dry_run]
