"""Shows the steps of an answer and the state of an evaluation run on a terminal."""

from rich.console import Console
from rich.table import Table

from searchrl.contracts.v1 import evaluator_pb2, generator_pb2

SNIPPET_CHARACTERS = 110  # of a passage: one line of a terminal of 120 columns, less the label
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


class AnswerView:
    """Prints the events of one answer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._titles: dict[str, str] = {}
        self._writing = False

    def show(self, event: generator_pb2.AnswerEvent) -> None:
        """Print one event."""
        match event.WhichOneof("event"):
            case "query":
                self._line("search", " | ".join(event.query.queries), "bold")
            case "documents":
                self._documents(event.documents)
            case "selection":
                kept = [self._titles.get(id, id) for id in event.selection.passage_ids]
                self._line("keep", ", ".join(kept) or "nothing of these", "green")
            case "tokens":
                self._tokens(event.tokens.text)
            case "final":
                self._final(event.final)
            case _:
                pass

    def _documents(self, step: generator_pb2.DocumentsStep) -> None:
        for result in step.results:
            passage = result.passage
            self._titles[passage.id] = passage.title
            text = " ".join(passage.text.split())
            self._line(f"found {result.rank}", f"{passage.title} · {text}"[:SNIPPET_CHARACTERS], "dim")

    def _tokens(self, text: str) -> None:
        if not self._writing:
            self._console.print("   answer  ", end="", style="cyan")
            self._writing = True
        # ``markup=False``: text of a model or a passage may hold brackets, which rich would read as its markup.
        self._console.print(text, end="", style="bold", markup=False, highlight=False)

    def _final(self, step: generator_pb2.FinalStep) -> None:
        if self._writing:
            self._console.print()
        else:
            self._line("answer", step.answer or "(empty)", "bold")
        titles = {document.id: document.title for document in step.documents}
        if step.citations:
            self._line("cites", ", ".join(f"{titles.get(id, '')} [{id}]" for id in step.citations), "green")
        counts = ((step.searches, "search", "searches"), (len(step.documents), "document", "documents"))
        spent = " · ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts)
        spent += f" · {step.context_tokens} context tokens"
        self._line("", f"{spent} · {step.seconds:.2f} s · {step.stop_reason or 'completed'}", "dim")

    def _line(self, label: str, text: str, style: str) -> None:
        self._console.print(f"{label:>9}  ", end="", style="cyan")
        self._console.print(text, style=style, markup=False, highlight=False)


def run_table(run: evaluator_pb2.EvaluationRun) -> Table:
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


def _cell(metric: evaluator_pb2.MetricValue | None, with_interval: bool) -> str:
    if metric is None or not metric.count:
        return ""
    mean = f"{metric.mean:.3g}" if abs(metric.mean) >= 10 else f"{metric.mean:.3f}"
    return f"{metric.mean:.2f} [dim]({metric.low:.2f}–{metric.high:.2f})[/]" if with_interval else mean
