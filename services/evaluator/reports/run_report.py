"""Renders the report of one stored run for the service."""

import json

from services.evaluator.reports.analysis import analyse
from services.evaluator.reports.report_columns import all_columns, load_columns
from services.evaluator.reports.report_json import report_json
from services.evaluator.reports.report_page import report_page
from services.evaluator.reports.story import tell, told_pair
from services.evaluator.store.run_store import RunStore


def render_run(store: RunStore, run_id: str, format: str) -> bytes:
    """One run's report as "html" or "json"."""
    data = load_columns(store, all_columns(store, run_id))
    analysis = analyse(data)
    if format == "json":
        return json.dumps(report_json(data, analysis), indent=1).encode()
    story = tell(store, data, told_pair(analysis))
    return report_page(data, analysis, title=f"Evaluation {run_id}", story=story).encode()
