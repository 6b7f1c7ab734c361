"""Composes one report of several stored runs: ``python -m services.evaluator.commands.compose_report --help``."""

import argparse
import sys
from pathlib import Path

from pydantic import Field

from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.settings import Section, read_yaml, validate
from services.evaluator.reports.pages import ExtraSection
from services.evaluator.reports.report_columns import ColumnSource
from services.evaluator.reports.report_writer import ReportRequest, write_report
from services.evaluator.store.run_store import RunStore


class Column(Section):
    """One column: a label of a stored run, and the name to show for it."""

    run_id: str
    label: str
    name: str = ""


class ReportSection(Section):
    """One more section of the page: paragraphs, then a table."""

    title: str
    paragraphs: list[str] = Field(default=[])
    header: list[str] = Field(default=[])
    rows: list[list[str]] = Field(default=[])


class Request(Section):
    """The request file (JSON or YAML)."""

    store: Path
    output: Path
    columns: list[Column]
    title: str = "Evaluation"
    baseline: str = ""
    compare: tuple[str, str] | None = None
    training_metrics: Path | None = None
    curve: list[str] = Field(default=[])
    sections: list[ReportSection] = Field(default=[])
    labels: dict[str, dict[str, str]] = Field(default={})
    seconds: float = 0.0
    phases: dict[str, float] = Field(default={})


def compose(request: Request) -> None:
    """Write report.html, report.json and summary.json into the output folder."""
    options = {"curve": tuple(request.curve)} if request.curve else {}
    # An evaluator may be writing to the store at the same time.
    store = RunStore.open_for_reading(request.store)
    try:
        write_report(
            store,
            ReportRequest(
                columns=[ColumnSource(column.run_id, column.label, column.name) for column in request.columns],
                title=request.title,
                baseline=request.baseline,
                compare=request.compare,
                training_metrics=request.training_metrics,
                sections=[ExtraSection(**section.model_dump()) for section in request.sections],
                labels=request.labels,
                seconds=request.seconds,
                phases=request.phases,
                **options,
            ),
            request.output,
        )
    finally:
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--request", required=True, type=Path, help="JSON or YAML file: store, output, columns, ...")
    arguments = parser.parse_args()
    try:
        compose(validate(Request, read_yaml(arguments.request)))
    except (ConfigurationError, ServiceError) as error:
        sys.stderr.write(f"compose_report: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
