"""Command that answers training questions with naive RAG: the evaluator's program, with the services of a folder."""

import argparse
from pathlib import Path

from searchrl.cli.command_parser import CommandParser, run_module, target_of
from searchrl.local.instance import DEFAULT_FOLDER

BASELINE_MODULE = "services.evaluator.commands.build_baseline"


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--folder", type=Path, default=DEFAULT_FOLDER, help=f"services that 'up' runs there (default {DEFAULT_FOLDER})")
    add("--generator", metavar="HOST:PORT", help="gRPC address of another generator")
    parser.pass_on(BASELINE_MODULE)


def run(arguments: argparse.Namespace) -> int:
    """Exit codes are the program's: 0 written, 1 incomplete (the same call continues), 2 unusable input."""
    return run_module(BASELINE_MODULE, baseline_arguments(arguments))


def baseline_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the program's own arguments.

    Raises:
        ConfigurationError: a generator is needed, none is named, and none runs in the folder.
    """
    passed: list[str] = arguments.passed_on
    # A file of s3 is converted without any service.
    is_import = any(word.partition("=")[0] == "--import-s3" for word in passed)
    if is_import and not arguments.generator:
        return passed
    return ["--generator", target_of(arguments, "generator"), *passed]
