"""Parses a command's arguments, finds the service that it calls, and passes them on to a service's own program."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from searchrl.errors import ConfigurationError, unknown_name
from searchrl.local.instance import DEFAULT_FOLDER, running_instance


class CommandParser(argparse.ArgumentParser):
    """Argument parser that suggests the nearest known flag for an unknown one, and raises instead of exiting.

    With ``pass_on``, what the command does not know itself is left in ``passed_on`` of the parsed arguments, for a
    service's own program, whose help follows the command's own.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            # An abbreviation that works today would become ambiguous with the next flag of the same beginning; and with
            # ``pass_on`` argparse would take a flag of the other program for the beginning of one of ours.
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._module = ""

    def pass_on(self, module: str) -> None:
        """Accept the flags of ``python -m module`` as well; that program checks them."""
        self._module = module
        self.set_defaults(passed_on=[])

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse ``argv``, without the name of the command.

        Raises:
            ConfigurationError: one sentence about the first error.
        """
        if self._module:
            arguments, arguments.passed_on = self.parse_known_args(list(argv))
            return arguments
        # Checked before argparse, which would first report a missing required argument and not the misspelled flag.
        known = [option for action in self._actions for option in action.option_strings]
        for argument in argv:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                raise ConfigurationError(unknown_name("flag", name, known))
        arguments, extras = self.parse_known_args(list(argv))
        if extras:
            raise ConfigurationError(f"unexpected argument '{extras[0]}'; see {self.prog} --help")
        return arguments

    def print_help(self, file: Any = None) -> None:
        """Print the help of the command, then that of the program that gets the other flags."""
        super().print_help(file)
        if self._module:
            # In a separate process, because this package must not import services.
            command = [sys.executable, "-m", self._module, "--help"]
            own = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            (file or sys.stdout).write(f"\nFlags not listed above are passed on to:\n\n{own}")

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")


def add_target_arguments(parser: CommandParser, service: str) -> None:
    """Add ``--folder``, ``--<service>`` and ``--key``."""
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help=f"where 'up' runs (default {DEFAULT_FOLDER})"
    )
    parser.add_argument(f"--{service}", metavar="HOST:PORT", help=f"gRPC address of another {service}")
    parser.add_argument("--key", help="API key, if the service requires one")


def target_of(arguments: argparse.Namespace, service: str) -> str:
    """Return "host:port" of a service's gRPC server: the one that the command names, or the one in its folder.

    Raises:
        ConfigurationError: none was named, and none is ready in the folder.
    """
    named = getattr(arguments, service)
    if named:
        return str(named)
    record = running_instance(arguments.folder).services.get(service)
    if record is None or not record.grpc:
        raise ConfigurationError(f"no {service} is ready in {arguments.folder}; see 'searchrl status'")
    return record.grpc


def forward_run(arguments: argparse.Namespace, inputs: Sequence[str], assignments: Sequence[str]) -> list[str]:
    """Return the arguments of a program that trains: the run's file or folder, and the settings.

    Args:
        inputs: flags that name files of the run, besides ``--config``.
        assignments: settings that follow from other flags; ``--set`` overrides them.

    Raises:
        ConfigurationError: a file or the folder is missing.
    """
    for name in ("config", *inputs):
        given = getattr(arguments, name)
        for path in given if isinstance(given, list) else [given]:
            if path is not None and not path.is_file():
                raise ConfigurationError(f"--{name}: there is no file {path}")
    if arguments.resume is not None and not arguments.resume.is_dir():
        raise ConfigurationError(f"--resume: there is no folder {arguments.resume}")
    forwarded: list[str] = []
    for name in ("config", "resume"):
        if getattr(arguments, name) is not None:
            forwarded += [f"--{name}", str(getattr(arguments, name))]
    if arguments.new:
        forwarded.append("--new")
    for assignment in [*assignments, *arguments.set]:
        forwarded += ["--set", assignment]
    return forwarded


def run_module(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by ``python -m module arguments``; signals and exit code are then the program's.

    Buffered output is flushed first, because exec discards it.
    """
    # exec, not a child process: a signal from the terminal or from Kubernetes reaches the program itself, and no parent
    # has to pass on its exit code.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
