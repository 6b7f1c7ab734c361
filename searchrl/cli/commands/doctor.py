"""Command that checks this machine and, if a run is named, everything that the run needs."""

import argparse
import subprocess
import sys
from collections.abc import Iterator

from rich.console import Console

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands.train import TRAINER_MODULE, add_run_arguments, trainer_arguments
from searchrl.platform.findings import Finding, FindingState, failures, findings_from_json, findings_to_json

MARKS = {
    FindingState.OK: "[green]ok     [/]",
    FindingState.WARNING: "[yellow]warning[/]",
    FindingState.FAILED: "[red]failed [/]",
}


def add_arguments(parser: CommandParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 nothing failed (there may be warnings), 2 something is missing or unusable."""
    console = Console()
    findings: list[Finding] = []
    for finding in examine(arguments):
        findings.append(finding)
        if not arguments.json:
            console.print(f"{MARKS[finding.state]} {finding.subject:<15} ", end="")
            console.print(finding.found, end="", markup=False, highlight=False, soft_wrap=True)
            console.print(f"  → {finding.advice}" if finding.advice else "", style="dim", markup=False, soft_wrap=True)
    if arguments.json:
        sys.stdout.write(findings_to_json(findings))
    return 2 if failures(findings) else 0


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Check the machine, then the run that the arguments describe, else what any run needs."""
    from searchrl.cli.folder_checks import check_folder
    from searchrl.cli.machine_checks import check_machine, check_room

    yield from check_machine()
    yield from check_folder(arguments.folder)
    if arguments.config or arguments.preset or arguments.resume:
        yield from check_run(trainer_arguments(arguments))
    else:
        yield from check_room(arguments.output or arguments.folder)


def check_run(arguments: list[str]) -> list[Finding]:
    """Run the checks of the trainer's dry run, in a separate process, which imports its heavy packages."""
    command = [sys.executable, "-m", TRAINER_MODULE, *arguments, "--dry-run", "--json"]
    # The exit code is not checked: a run with failed findings ends with one, and the findings say more.
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return findings_from_json(finished.stdout)
    except ValueError:  # it ended before the checks
        last = finished.stderr.strip().splitlines()[-1:] or [f"the trainer ended with exit code {finished.returncode}"]
        found = last[0].removeprefix("trainer: ")
        return [Finding("configuration", FindingState.FAILED, found, "correct the run file or --set")]
