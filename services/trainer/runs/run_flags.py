"""Parses the flags of the programs that train, and finds the file that describes the run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from searchrl.errors import ConfigurationError, unknown_name
from services.trainer.runs.run_folder import RunFolder


class RunParser(argparse.ArgumentParser):
    """The flags that start or continue a run, to which a program adds its own.

    Args:
        config: help of ``--config``.
        dry_run: help of ``--dry-run``.
    """

    def __init__(self, prog: str, description: str, config: str, dry_run: str) -> None:
        # No abbreviations: one that is unique today changes its meaning with the next flag.
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--config", type=Path, help=config)
        self.add_argument("--resume", type=Path, metavar="DIR", help="run folder to continue, with its own run.yaml")
        self.add_argument("--new", action="store_true", help="refuse a run folder that already holds a run")
        self.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
        self.add_argument("--dry-run", action="store_true", help=dry_run)
        self.add_argument(
            "--unfinished-exit-code",
            type=int,
            default=0,
            metavar="CODE",
            help="exit code if a signal ends the process before the run's last step; default 0",
        )

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Raises:
        ConfigurationError: a flag that does not exist; the message names the nearest one.
        """
        # Unknown flags are collected, so that the error names the nearest one instead of printing the usage.
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise ConfigurationError(unknown_name("flag", unknown[0], known))
        return arguments


def continues_run(arguments: argparse.Namespace, output: Path) -> bool:
    """Whether this process continues the run in ``output`` instead of starting one.

    Only the holder of the run's lock may ask: until it has the lock, another process may be writing there.
    """
    return arguments.resume is not None or (not arguments.new and RunFolder(output).holds_run)


def find_run_file(arguments: argparse.Namespace) -> Path | None:
    """Return the file that describes the run: the one that ``--config`` names, or that of the run to resume.

    Raises:
        ConfigurationError: there is no run to resume.
    """
    if arguments.resume is None or arguments.config is not None:
        return arguments.config
    path = RunFolder(arguments.resume).config
    if not path.is_file():
        raise ConfigurationError(f"--resume: {arguments.resume} holds no run: it has no {path.name}")
    return path
