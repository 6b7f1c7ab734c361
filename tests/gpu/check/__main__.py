"""Checks learner, engine, encoder and memory estimates on one GPU within 8 minutes, and prints a report in Markdown.

    python -m tests.gpu.check --output runs/gpu-check
    python -m tests.gpu.check --device cpu              # a dry run with tiny shapes

Each check runs in a process of its own with a time limit; a failed one does not stop the others. The status is 1 if any
failed, and 2 if there is no GPU. The folder of ``--output`` holds the report and the output of each check.
"""

import argparse
import gc
import importlib
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.bench.tables import format_table
from tests.gpu.check import checks
from tests.gpu.check.checks import Check, CheckSettings, describe_device, run_named
from tests.gpu.check.isolation import Finding, StartMethod, run_isolated

TOTAL_SECONDS = 480.0
# A dry run may be one of many processes on a busy machine.
DRY_RUN_PATIENCE = 5.0
# Loaded once, before the processes of a dry run are forked.
PRELOADED = (
    "services.retriever.indexes.vectors.exact",
    "sentence_transformers",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
)
COLUMNS = ("check", "result", "seconds", "found", "shows")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print the report; return the exit status."""
    started = time.monotonic()
    options = parse_arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    start: StartMethod = "fork" if options.device == "cpu" else "spawn"
    device = run_isolated(partial(describe_device, options.device), start, 60, options.output / "device.log")
    if not device.passed:
        print(f"no check ran: {device.text}", file=sys.stderr)  # noqa: T201 - a program's output
        return 2
    if start == "fork":
        for name in PRELOADED:
            importlib.import_module(name)
        gc.freeze()  # a child's collector would otherwise copy all of these modules' memory, page by page
    settings = CheckSettings(options.device, options.first_case)
    patience = DRY_RUN_PATIENCE if options.device == "cpu" else 1.0
    chosen = [check for check in checks.CHECKS if not options.only or check.name in options.only]
    deadline = started + TOTAL_SECONDS * patience
    results: list[Result] = []
    report = ""
    for check in chosen:
        results.append(run_check(check, settings, check.seconds * patience, deadline, options.output))
        # after each check, so that a machine that is taken away costs only what is unfinished
        report = write_report(device.text, results, time.monotonic() - started)
        (options.output / "report.md").write_text(report)
    print(report)  # noqa: T201 - a program's output
    return 0 if all(finding.passed for _, finding, _ in results) else 1


Result = tuple[Check, Finding, float]
"""A check, what it found, and its seconds."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run with tiny shapes")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"), help="folder of report and logs")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in checks.CHECKS], help="run these checks")
    parser.add_argument("--first-case", action="store_true", help="run only the first case of each test")
    return parser.parse_args(arguments)


def run_check(check: Check, settings: CheckSettings, limit: float, deadline: float, output: Path) -> Result:
    """Run one check, within its limit and the time that is left; print its result as it ends."""
    started = time.monotonic()
    limit = min(limit, deadline - started)
    if limit <= 0:
        return check, Finding(False, "not run: no time was left"), 0.0
    log = output / f"{check.name.replace(' ', '-').replace(',', '')}.log"
    log.unlink(missing_ok=True)
    start: StartMethod = "fork" if settings.device == "cpu" else "spawn"
    finding = run_isolated(partial(run_named, check.name, settings), start, limit, log)
    seconds = time.monotonic() - started
    state = "passed" if finding.passed else f"FAILED (output in {log})"
    print(f"{check.name}: {state} after {seconds:.1f} s: {finding.text}", file=sys.stderr)  # noqa: T201
    return check, finding, seconds


def write_report(device: str, results: Sequence[Result], seconds: float) -> str:
    """Return the report in Markdown: the checks, and the tables of what was measured."""
    rows = [
        {
            "check": check.name, "result": "passed" if finding.passed else "FAILED", "seconds": took,
            "found": finding.text.replace("|", "/"), "shows": check.shows,
        }
        for check, finding, took in results
    ]  # fmt: skip
    tables = [table for _, finding, _ in results for table in finding.tables]
    parts = [format_table(f"Checks on {device}, {seconds:.0f} s", COLUMNS, rows)]
    return "\n\n".join([*parts, *(format_table(table.title, table.columns, table.rows) for table in tables)])


if __name__ == "__main__":
    sys.exit(main())
