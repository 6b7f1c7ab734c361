"""Command that writes a small world: a corpus of invented facts and questions about them."""

import argparse
from pathlib import Path

from rich.console import Console

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="where corpus.jsonl, train.jsonl, test.jsonl and large.jsonl are written")
    add("--seed", type=int, default=0, help="another seed, another set of worlds")
    add("--train-worlds", type=int, default=300, help="worlds to train on (default 300)")
    add("--test-worlds", type=int, default=4, help="unseen worlds to test on (default 4)")
    add("--questions-per-world", type=int, default=150, help="default 150")
    add("--large-questions", type=int, default=500, help="questions of the one larger, unseen world (default 500)")


def run(arguments: argparse.Namespace) -> int:
    # Imported when it runs, so that --help does not load the generator of worlds.
    from searchrl.small_world.files import write_small_world

    counts = {name: value for name, value in vars(arguments).items() if name not in ("folder", "seed")}
    for name, value in counts.items():
        if value < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.folder.exists() and not arguments.folder.is_dir():
        raise ConfigurationError(f"{arguments.folder} is not a folder")
    console = Console()
    with console.status("writing the worlds"):
        files = write_small_world(arguments.folder, arguments.seed, **counts)
    for path in (files.corpus, files.train, files.test, files.large):
        size = f"{path.stat().st_size / 1e6:8.1f} MB"
        console.print(f"{size}  {path}", markup=False, highlight=False, soft_wrap=True)
    return 0
