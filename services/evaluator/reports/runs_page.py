"""Renders the start page, which lists the runs."""

from collections.abc import Sequence

from services.evaluator.reports.page_templates import page_template
from services.evaluator.runs.run_progress import RunView

RUNS_OF_A_PAGE = 100  # the first visit computes the intervals of each, so a longer page takes longer


def runs_page(views: Sequence[RunView], *, older: int | None = None) -> str:
    """The list of runs as HTML; ``older`` is the position at which the next page starts."""
    return page_template("runs.html.j2").render(views=views, older=older)
