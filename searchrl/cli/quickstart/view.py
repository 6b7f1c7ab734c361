"""Displays the quickstart: its phases with their times, live numbers, and a table of results."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"


@dataclass
class _Phase:
    title: str
    started: float | None = None
    seconds: float | None = None
    detail: str = ""
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))


class QuickstartView:
    """Live display on a terminal; plain lines if the output is not a terminal."""

    def __init__(self, console: Console, titles: Sequence[str]) -> None:
        self._console = console
        self._phases = {title: _Phase(title) for title in titles}
        self._current: _Phase | None = None
        # Eight frames a second keep the spinner smooth; each one costs time of the cores that train.
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.refresh()
            self._live.stop()

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Show ``title`` as running during the block, and with its time afterwards."""
        phase = self._phases[title]
        phase.started, self._current = time.monotonic(), phase
        if not self._console.is_terminal:
            self._console.print(f"▶ {title}", highlight=False)
        try:
            yield
        finally:
            phase.seconds = time.monotonic() - phase.started
            self._current = None
            if not self._console.is_terminal:
                self._console.print(f"  {title}: {phase.seconds:.1f} s  {phase.detail}", highlight=False)

    def say(self, detail: str) -> None:
        """Show ``detail`` beside the running phase, in place of the previous one."""
        if self._current is not None:
            self._current.detail = detail

    def seconds(self) -> dict[str, float]:
        """Return how long each finished phase took."""
        return {phase.title: round(phase.seconds, 1) for phase in self._phases.values() if phase.seconds is not None}

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=2)
        table.add_column(min_width=34)
        table.add_column(justify="right", width=8)
        table.add_column(overflow="ellipsis", no_wrap=True)
        for phase in self._phases.values():
            if phase.seconds is not None:
                table.add_row("[green]✓[/]", phase.title, f"{phase.seconds:.1f} s", Text(phase.detail, style="dim"))
            elif phase.started is not None:
                elapsed = time.monotonic() - phase.started
                table.add_row(phase.spinner, phase.title, f"{elapsed:.0f} s", Text(phase.detail, style="cyan"))
            else:
                table.add_row("", Text(phase.title, style="dim"), "", "")
        return table


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw the last ``width`` values, between 0 and 1, as bars of eight heights."""
    # The value 1.0 would be the ninth bar.
    return "".join(BARS[min(7, max(0, int(value * 8)))] for value in values[-width:])


def results_table(rows: Sequence[tuple[str, Mapping[str, str]]], columns: Sequence[str], title: str) -> RenderableType:
    """Build the final table, one row per method."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows:
        style = "bold green" if name == "s3 (trained)" else None
        table.add_row(name, *(cells.get(column, "–") for column in columns), style=style)
    return Group("", table)
