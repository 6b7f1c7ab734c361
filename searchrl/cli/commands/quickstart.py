"""Command that demonstrates everything: a small world, RL, evaluation on unseen worlds, and a report."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import cast

from rich.console import Console

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.quickstart.plan import QuickstartPlan
from searchrl.cli.quickstart.session import PHASES, WARM, QuickstartSession
from searchrl.cli.quickstart.view import QuickstartView, results_table
from searchrl.errors import ConfigurationError
from searchrl.local.supervisor import ServiceFailed

RUNS = Path("runs")


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--fast", action="store_true", help="fewer steps and questions: under three minutes")
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="make the warm start too (about 40 minutes; with --fast a smaller one), not use ours",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed: other worlds and other rollouts")
    parser.add_argument("--steps", type=int, help="reinforcement learning steps, instead of the plan's")
    parser.add_argument("--folder", type=Path, help="where everything is written (default runs/quickstart-...)")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 done, 1 a process failed, 2 unusable input, 130 interrupted."""
    plan = make_plan(arguments)
    folder = new_folder(arguments.folder)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on two busy cores are slower than one
    # Idle OpenMP threads sleep instead of spinning, which would take the cores from the other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # KeyboardInterrupt: every process is stopped
    console = Console()
    console.print(f"SearchRL quickstart: seed {plan.seed}, {plan.steps} steps; everything goes to {folder}")
    started = time.monotonic()
    try:
        with QuickstartView(console, [phase for phase in PHASES if plan.from_scratch or phase != WARM]) as view:
            session = QuickstartSession(folder, plan, view)
            summary = session.run()
    except (ServiceFailed, TimeoutError) as error:
        sys.stderr.write(f"searchrl: {error}\nthe logs are in {folder / 'logs'}\n")
        return 1
    show_results(console, summary, folder, time.monotonic() - started)
    return 0


def make_plan(arguments: argparse.Namespace) -> QuickstartPlan:
    """Choose the sizes of the quickstart.

    Raises:
        ConfigurationError: a number is out of range.
    """
    if arguments.steps is not None and arguments.steps < 1:
        raise ConfigurationError(f"--steps must be at least 1, got {arguments.steps}")
    if arguments.seed < 0:
        raise ConfigurationError(f"--seed must not be negative, got {arguments.seed}")
    make = QuickstartPlan.fast if arguments.fast else QuickstartPlan.full
    return make(arguments.seed, arguments.scratch, arguments.steps)


def new_folder(wanted: Path | None) -> Path:
    """Create the folder; without ``wanted`` a new one each time, so that simultaneous quickstarts do not collide.

    Raises:
        ConfigurationError: the wanted folder is not empty, or cannot be written.
    """
    folder = wanted
    if folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = RUNS / f"quickstart-{stamp}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"--folder {folder} is not empty: choose another one")
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder}: {error.strerror}") from error
    return folder.resolve()


def show_results(console: Console, summary: dict[str, object], folder: Path, seconds: float) -> None:
    """Print the table, the time, and the paths of the report."""
    methods = cast(dict[str, dict[str, float]], summary["methods"])
    columns = ["accuracy", "sampled", "larger world"]
    shown = {"s3": "s3 (trained)", "s3-untrained": "s3 (untrained)", "rag": "naive RAG", "direct": "closed book"}
    rows = [
        (shown.get(name, name.replace("_", " ")), {column: _share(fields.get(column.replace(" ", "_")))
                                                   for column in columns})
        for name, fields in methods.items()
    ]  # fmt: skip
    console.print(results_table(rows, columns, "Answers right, on unseen worlds"))
    console.print("accuracy: greedy; sampled: temperature 1; larger world: its names occur nowhere in training")
    console.print(f"\n{seconds:.0f} s. Report: [bold]{folder / 'report' / 'report.html'}[/]", soft_wrap=True)
    console.print(f"Numbers: {folder / 'report' / 'summary.json'}", soft_wrap=True, highlight=False)


def _share(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "–"
