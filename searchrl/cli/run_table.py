"""How does an evaluation run look on a terminal? One row per method, the main metrics as columns."""

from rich.table import Table

from searchrl.contracts.v1 import evaluator_pb2 as pb

# The first of these is shown with its interval; what else was measured is in the report.
COLUMNS = ("accuracy", "exact_match", "f1", "gold_recall", "searches", "context_tokens", "seconds_p50")


def run_table(run: pb.EvaluationRun) -> Table:
    """Progress and, where known, means with their intervals."""
    measured = {metric.name for method in run.methods for metric in method.metrics}
    names = [name for name in COLUMNS if name in measured]
    table = Table(title=f"{run.run_id}: {run.state}", title_justify="left", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("done", justify="right")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for method in run.methods:
        by_name = {metric.name: metric for metric in method.metrics}
        failed = f" ({method.failed} failed)" if method.failed else ""
        table.add_row(
            method.label,
            f"{method.done}/{method.total}{failed}",
            *(_cell(by_name.get(name), with_interval=name == COLUMNS[0]) for name in names),
        )
    return table


def _cell(metric: pb.MetricValue | None, with_interval: bool) -> str:
    if metric is None or not metric.count:
        return ""
    mean = f"{metric.mean:.3g}" if abs(metric.mean) >= 10 else f"{metric.mean:.3f}"
    return f"{mean} [dim]({metric.low:.3f} to {metric.high:.3f})[/]" if with_interval else mean
