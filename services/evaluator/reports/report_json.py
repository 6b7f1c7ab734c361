"""Writes a report as JSON values for a program: all numbers, or a short summary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from searchrl.statistics.intervals import Estimate
from services.evaluator.reports.analysis import Analysis, ColumnSummary, Controls
from services.evaluator.reports.charts import Series
from services.evaluator.reports.report_columns import ReportInput
from services.evaluator.runs.provenance_guard import find_changes

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def report_to_json(data: ReportInput, analysis: Analysis) -> dict[str, Json]:
    """Every number of the report; values that do not exist are null."""
    return {
        "runs": [
            {
                "run_id": record.spec.run_id,
                "state": record.state.value,
                "questions": record.spec.questions,
                "questions_sha256": record.questions_sha256,
                "index_generation": record.index_generation,
                "reason": record.reason.value,
                "error": record.error,
                "created": record.created,
            }
            for record in data.records
        ],
        "provenance": {name: list(values) for name, values in analysis.provenance.items()},
        "changed": list(find_changes(analysis.provenance)),
        "baseline": analysis.baseline,
        "common_questions": analysis.common,
        "methods": {column.name: _column_to_json(column) for column in analysis.columns},
        "differences": [
            {
                "first": entry.first,
                "second": entry.second,
                "adjusted_p": _finite_or_null(entry.adjusted_p),
                **{name: _finite_or_null(value) for name, value in asdict(entry.result).items()},
            }
            for entry in analysis.comparisons
        ],
        "breakdowns": {
            breakdown.key: {
                column: {value: _estimate_to_json(cell) for value, cell in cells.items()}
                for column, cells in breakdown.cells.items()
            }
            for breakdown in analysis.breakdowns
        },
        "controls": _controls_to_json(analysis.controls),
        "tokens": {
            entry.column: {
                "generator": {"prompt": entry.generator[0], "completion": entry.generator[1]},
                "searcher": {"prompt": entry.searcher[0], "completion": entry.searcher[1]},
                "total": entry.total,
                "judge_sum": {"prompt": entry.judge[0], "completion": entry.judge[1]},
            }
            for entry in analysis.tokens
        },
    }


def summary_to_json(
    analysis: Analysis,
    labels: Mapping[str, Mapping[str, str]],
    *,
    curve: Sequence[Series] = (),
    seconds: float = 0.0,
    phases: Mapping[str, float] | None = None,
) -> dict[str, Json]:
    """A short summary under names of the caller's choice.

    Args:
        labels: method name -> {field -> column}, e.g. ``{"s3": {"accuracy": "s3", "sampled": "s3 (T=1)"}}``. Each field
            becomes the accuracy of its column.
        curve: training metrics; becomes one object per step.
        seconds: how long everything took, as measured by the caller; ``phases``: how long each part took.
    """
    accuracy = {column.name: _finite_or_null(column.accuracy.mean) for column in analysis.columns}
    points: dict[float, dict[str, Json]] = {}
    for series in curve:
        for step, value in zip(series.steps, series.values, strict=True):
            points.setdefault(step, {"step": step})[series.name] = value
    return {
        "methods": {
            name: {field: accuracy.get(column) for field, column in fields.items()} for name, fields in labels.items()
        },
        "curve": [points[step] for step in sorted(points)],
        "seconds": seconds,
        "phases": dict(phases or {}),
    }


def _column_to_json(column: ColumnSummary) -> dict[str, Json]:
    return {
        "method": column.method,
        "control": column.is_control,
        "answered": column.done,
        "total": column.total,
        "coverage": column.coverage,
        "failures": {**column.lost, **column.refused},
        "lost": sum(column.lost.values()),
        "refused": sum(column.refused.values()),
        "not_applicable": column.not_applicable,
        "judge_versions": list(column.judge_versions),
        "decided_by_judge": column.decided_by_judge,
        "accuracy_on_common": _finite_or_null(column.on_common.mean),
        "gap_closed": column.gap_closed,
        "metrics": {name: _estimate_to_json(value) for name, value in column.estimates.items()},
    }


def _controls_to_json(controls: Controls) -> dict[str, Json]:
    return {
        "closed_book": _estimate_to_json(controls.closed_book),
        "oracle": _estimate_to_json(controls.oracle),
        "random_retriever": _estimate_to_json(controls.random_retriever),
        "oracle_wrong": controls.oracle_wrong,
        "gold_checked": controls.gold_checked,
        "with_gold": controls.with_gold,
        "missing": controls.missing,
        "unanswerable": controls.unanswerable,
        "unanswerable_of": controls.unanswerable_of,
    }


def _estimate_to_json(value: Estimate | None) -> Json:
    if value is None:
        return None
    return {name: _finite_or_null(number) for name, number in asdict(value).items()}


def _finite_or_null(value: float | int) -> float | int | None:
    # JSON has no NaN and no infinity (RFC 8259, 6); Python would write them, and other readers refuse the file.
    return value if math.isfinite(value) else None
