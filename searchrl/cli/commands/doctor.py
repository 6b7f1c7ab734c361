"""Check what this machine offers, one line each, with what to do."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from searchrl.cli.command_parser import CommandParser

MARKS = {"good": "[green]✓[/]", "optional": "[yellow]–[/]", "bad": "[red]✗[/]"}


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are to be written")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 where something that is needed is missing."""
    from searchrl.cli.machine_checks import Verdict, examine

    console = Console()
    findings = []
    for finding in examine(arguments.folder):
        findings.append(finding)
        if not arguments.json:
            console.print(f"{MARKS[finding.verdict]} {finding.subject:<13} ", end="")
            console.print(finding.found, end="", markup=False, highlight=False, soft_wrap=True)
            console.print(f"  → {finding.advice}" if finding.advice else "", style="dim", markup=False, soft_wrap=True)
    if arguments.json:
        sys.stdout.write(json.dumps([finding._asdict() for finding in findings], indent=2) + "\n")
    return int(any(finding.verdict is Verdict.BAD for finding in findings))
