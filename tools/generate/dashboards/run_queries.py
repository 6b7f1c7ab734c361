"""Builds queries about the training runs that a reader has chosen on the dashboard."""

from tools.generate.dashboards import panels
from tools.generate.dashboards.panels import Json

T = "searchrl_trainer"
PICK = f'{panels.PICK},run=~"$run"'  # several runs can share a namespace


def query(expr: str, legend: str = "") -> Json:
    """Return a query about the chosen runs."""
    return panels.query(expr.replace("$pick", PICK), legend)


def gauge(name: str, legend: str = "") -> Json:
    return query(f"max by (job, instance) ({T}_{name}{{$pick}})", f"{legend} {{{{instance}}}}".strip())
