"""Write a report over stored runs: ``python -m services.evaluator.render_report``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from searchrl.errors import ConfigurationError
from services.evaluator.command_line import run_command
from services.evaluator.reports.report_columns import all_columns
from services.evaluator.reports.report_writer import ReportRequest, write_report
from services.evaluator.store.run_store import RunStore

EXAMPLE = """\
A request is a JSON file with the fields of ReportRequest, e.g.
  {"title": "Small world",
   "columns": [{"run_id": "before", "label": "s3", "shown_as": "s3-untrained"},
               {"run_id": "after", "label": "rag"}, {"run_id": "after", "label": "s3"}],
   "compare": ["s3-untrained", "s3"], "training_metrics": "training/metrics.jsonl",
   "labels": {"rag": {"accuracy": "rag"}, "s3": {"accuracy": "s3"}},
   "sections": [{"title": "Machine", "paragraphs": ["Two cores."]}], "seconds": {"training": 118.0}}
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="render-report",
        description="Write report.html, report.json and summary.json from stored runs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", required=True, type=Path, help="result store, e.g. runs/evaluator/results.sqlite")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--run", default="", help="report every column of this run")
    chosen.add_argument("--request", type=Path, help="JSON file that says what goes into the report")
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    return parser.parse_args(argv)


def read_request(path: Path) -> ReportRequest:
    """Read a request file.

    Raises:
        ConfigurationError: it is missing, no JSON, or has an unknown or badly typed field.
    """
    try:
        return TypeAdapter(ReportRequest).validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the request {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {place or 'file'}: {first['msg']}") from error


async def render_report(arguments: argparse.Namespace) -> int:
    store = RunStore.open_for_reading(arguments.store)
    if arguments.request is not None:
        request = read_request(arguments.request)
    else:
        request = ReportRequest(all_columns(store, arguments.run), title=f"Evaluation {arguments.run}")
    write_report(store, request, arguments.output)
    return 0


def main() -> None:
    arguments = parse_arguments()
    run_command("render-report", lambda: render_report(arguments))


if __name__ == "__main__":
    main()
