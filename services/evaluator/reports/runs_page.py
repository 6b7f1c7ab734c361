"""The start page: which runs there are."""

from collections.abc import Sequence

from services.evaluator.reports.page_templates import page_template
from services.evaluator.runs.run_progress import RunView

RUNS_OF_A_PAGE = 100


def runs_page(views: Sequence[RunView], *, older: int | None = None) -> str:
    """The list of runs as HTML; ``older`` is where the next page starts."""
    return page_template("runs.html.j2").render(views=views, older=older)
