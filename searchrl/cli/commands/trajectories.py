"""Command that chooses trajectories of a run for supervised training: the trainer's program in this terminal."""

import argparse

from searchrl.cli.command_parser import CommandParser, run_module

EXPORT_MODULE = "services.trainer.sft.export_trajectories"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("action", choices=("export",), help="export: write the best of each question into one file")
    parser.pass_on(EXPORT_MODULE)


def run(arguments: argparse.Namespace) -> int:
    """Exit codes are the program's: 0 written, 2 a run cannot be used, or nothing would be left."""
    return run_module(EXPORT_MODULE, arguments.passed_on)
