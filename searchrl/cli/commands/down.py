"""Command that stops what ``searchrl up`` started in a folder."""

import argparse
import contextlib
import os
import signal
import time
from pathlib import Path

from rich.console import Console

from searchrl.cli.command_parser import CommandParser
from searchrl.local.instance import DEFAULT_FOLDER, Instance
from searchrl.platform.processes import is_running

POLL_SECONDS = 0.1  # between looks at a supervisor that is stopping, which takes seconds


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default {DEFAULT_FOLDER}")
    # Five processes (three services, the searcher and a training job) are stopped one after the other, each within 25 s
    # of grace and 5 s more: 5 * 30 s = 150 s.
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds before it is killed")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 when nothing is running any more, even if nothing was."""
    console = Console()
    instance = Instance.read(arguments.folder)
    if instance is None or not instance.is_alive:
        console.print(f"nothing is running in {arguments.folder}", highlight=False)
        return 0
    with console.status("stopping the services"):
        killed = _stop(instance, arguments.timeout)
    console.print(f"{'killed' if killed else 'stopped'} what ran in {arguments.folder}", highlight=False)
    return 0


def _stop(instance: Instance, seconds: float) -> bool:
    """Send SIGTERM, and SIGKILL after ``seconds``; return whether the supervisor was killed.

    The guard processes of a killed supervisor stop its services.
    """
    # ProcessLookupError: it has ended by itself since it was last seen.
    with contextlib.suppress(ProcessLookupError):
        os.kill(instance.supervisor_pid, signal.SIGTERM)
        until = time.monotonic() + seconds
        # The start time is compared too: another process may get the id while this one waits.
        while is_running(instance.supervisor_pid, instance.started):
            if time.monotonic() > until:
                os.kill(instance.supervisor_pid, signal.SIGKILL)
                return True
            time.sleep(POLL_SECONDS)
    return False
