"""Renders the report of one stored run for the service."""

import json

from services.evaluator.reports.analysis import analyze
from services.evaluator.reports.example import example_columns, pick_example
from services.evaluator.reports.report_columns import list_columns, load_columns
from services.evaluator.reports.report_json import report_to_json
from services.evaluator.reports.report_page import render_report
from services.evaluator.store.run_store import RunStore


def render_run(store: RunStore, run_id: str, format: str) -> bytes:
    """One run's report as "html" or "json"."""
    data = load_columns(store, list_columns(store, run_id))
    analysis = analyze(data)
    if format == "json":
        return json.dumps(report_to_json(data, analysis), indent=1).encode()
    example = pick_example(store, data, example_columns(analysis))
    return render_report(data, analysis, title=f"Evaluation {run_id}", example=example).encode()
