"""Renders the start page, which lists the runs."""

from collections.abc import Sequence

from services.evaluator.reports.page_templates import load_template
from services.evaluator.runs.run_progress import RunResults

RUNS_PER_PAGE = 100  # the first visit computes the intervals of each, so a longer page takes longer


def render_runs(views: Sequence[RunResults], *, older: int | None = None) -> str:
    """The list of runs as HTML; ``older`` is the position at which the next page starts."""
    return load_template("runs.html.j2").render(views=views, older=older)
