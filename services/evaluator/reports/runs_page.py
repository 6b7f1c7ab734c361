"""Which runs are there? The start page."""

from collections.abc import Sequence

from services.evaluator.reports.page_templates import page_template
from services.evaluator.runs.run_progress import RunView


def runs_page(views: Sequence[RunView]) -> str:
    """The list of runs as HTML."""
    return page_template("runs.html.j2").render(views=views)
