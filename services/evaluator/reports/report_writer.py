"""Writes reports: of one stored run for the service, and of columns from several runs to disk for the commands."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from searchrl.storage.durable_files import atomic_write
from services.evaluator.reports.analysis import Analysis, analyze
from services.evaluator.reports.charts import Series, pick_series, read_training_metrics
from services.evaluator.reports.example import example_columns, pick_example
from services.evaluator.reports.pages import ExtraSection, render_report
from services.evaluator.reports.report_columns import ColumnSource, list_columns, load_columns
from services.evaluator.reports.report_json import report_to_json, summary_to_json
from services.evaluator.store.run_store import RunStore

# Names under which trainers log what a reader wants to see first.
CURVE_METRICS = (
    "reward_mean", "mean_reward", "reward", "success", "correct", "accuracy",
    "searches", "documents", "entropy", "kl", "well_formed", "response_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What goes into a report.

    Attributes:
        columns: which columns of which stored runs, in the order of the table.
        baseline: shown name of the column to compare with; if empty, naive RAG.
        compare: shown names of the untrained and the trained searcher: one more comparison, and the example question.
        training_metrics: a trainer's metrics.jsonl.
        curve: names of the metrics to draw, in order.
        sections: added after the report's own.
        labels: see ``summary_to_json``; summary.json is written if they are not empty.
        seconds: how long everything took, and ``phases`` each part of it; both go into summary.json.
    """

    columns: Sequence[ColumnSource]
    title: str = "Evaluation"
    baseline: str = ""
    compare: tuple[str, str] | None = None
    training_metrics: Path | None = None
    curve: Sequence[str] = CURVE_METRICS
    sections: Sequence[ExtraSection] = ()
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)


def write_report(store: RunStore, request: ReportRequest, folder: Path) -> Analysis:
    """Write report.html, report.json and, if labels are given, summary.json into ``folder``.

    Raises:
        NotFound: a run, a column or the training metrics do not exist.
        Conflict: the runs have different questions with equal ids.
    """
    data = load_columns(store, request.columns)
    analysis = analyze(data, baseline=request.baseline, compare=request.compare)
    curve: list[Series] = []
    if request.training_metrics is not None:
        curve = pick_series(read_training_metrics(request.training_metrics), request.curve)
    page = render_report(
        data,
        analysis,
        title=request.title,
        example=pick_example(store, data, request.compare or example_columns(analysis)),
        training=curve,
        sections=request.sections,
    )
    # Only now: a report that cannot be computed leaves the files of the last one as they are.
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "report.html", page)
    atomic_write(folder / "report.json", json.dumps(report_to_json(data, analysis), indent=1))
    if request.labels:
        summary = summary_to_json(analysis, request.labels, curve=curve, seconds=request.seconds, phases=request.phases)
        atomic_write(folder / "summary.json", json.dumps(summary, indent=1))
    return analysis


def render_run(store: RunStore, run_id: str, format: str) -> bytes:
    """One run's report as "html" or "json"."""
    data = load_columns(store, list_columns(store, run_id))
    analysis = analyze(data)
    if format == "json":
        return json.dumps(report_to_json(data, analysis), indent=1).encode()
    example = pick_example(store, data, example_columns(analysis))
    return render_report(data, analysis, title=f"Evaluation {run_id}", example=example).encode()
