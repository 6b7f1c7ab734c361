"""Command that builds an index from a corpus: the retriever's build command."""

import argparse
from pathlib import Path

from searchrl.cli.command_parser import CommandParser, run_module
from searchrl.errors import ConfigurationError
from searchrl.local.index_build import BUILD_MODULE


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--corpus", type=Path, nargs="+", required=True, help="rows of id and contents: .jsonl or .jsonl.gz")
    add("--output", type=Path, required=True, help="index folder; 'searchrl up --index' takes it")
    parser.pass_on(BUILD_MODULE)


def run(arguments: argparse.Namespace) -> int:
    """Exit codes are the build command's: 0 built, 1 a temporary failure, 2 unusable input."""
    for path in arguments.corpus:
        if not path.is_file():
            raise ConfigurationError(f"--corpus: there is no file {path}")
    inputs = ["--corpus", *map(str, arguments.corpus), "--output", str(arguments.output)]
    return run_module(BUILD_MODULE, [*inputs, *arguments.passed_on])
