"""Prints the steps of an answer on a terminal, as they happen."""

from rich.console import Console

from searchrl.contracts.v1 import generator_pb2 as pb

SNIPPET_CHARACTERS = 110  # of a passage: one line of a terminal of 120 columns, less the label


class AnswerView:
    """Prints the events of one answer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._titles: dict[str, str] = {}
        self._writing = False

    def show(self, event: pb.AnswerEvent) -> None:
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

    def _documents(self, step: pb.DocumentsStep) -> None:
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

    def _final(self, step: pb.FinalStep) -> None:
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
