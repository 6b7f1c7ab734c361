"""Renders an evaluation run as a table: one row per method, the main metrics as columns."""

from rich.table import Table

from searchrl.contracts.v1 import evaluator_pb2 as pb

# Metrics and short headings that fit a terminal of 80 columns; the report has all metrics.
COLUMNS = {
    "accuracy": "accuracy",
    "exact_match": "EM",
    "f1": "F1",
    "gold_recall": "recall",
    "searches": "search",
    "context_tokens": "tokens",
    "seconds_p50": "p50 s",
}
INTERVAL_OF = "accuracy"  # the metric shown with its interval; there is room for one


def run_table(run: pb.EvaluationRun) -> Table:
    """Build the table of progress and, as far as known, of metrics."""
    measured = {metric.name for method in run.methods for metric in method.metrics}
    names = [name for name in COLUMNS if name in measured]
    table = Table(title=f"{run.run_id}: {run.state}", title_justify="left", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("done", justify="right")
    for name in names:
        table.add_column(COLUMNS[name], justify="right", no_wrap=True)
    for method in run.methods:
        by_name = {metric.name: metric for metric in method.metrics}
        failed = f" ({method.failed} failed)" if method.failed else ""
        applicable = method.total - method.not_applicable
        table.add_row(
            method.label,
            f"{method.done}/{applicable}{failed}",
            *(_cell(by_name.get(name), with_interval=name == INTERVAL_OF) for name in names),
        )
    return table


def _cell(metric: pb.MetricValue | None, with_interval: bool) -> str:
    if metric is None or not metric.count:
        return ""
    mean = f"{metric.mean:.3g}" if abs(metric.mean) >= 10 else f"{metric.mean:.3f}"
    return f"{metric.mean:.2f} [dim]({metric.low:.2f}–{metric.high:.2f})[/]" if with_interval else mean
