"""Draws the charts of a report as inline SVG whose colors follow the page's light or dark theme.

Figures are built without pyplot, whose list of open figures is shared by all threads and grows until they are closed.
The training curves come from the trainer's metrics file, which is read here, too.
"""

import html
import io
import itertools
import math
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from searchrl.errors import InvalidRequest, NotFound
from searchrl.input_files import parse_json
from searchrl.storage.durable_files import read_complete_lines
from services.evaluator.reports.analysis import Breakdown, ColumnSummary

# matplotlib writes these colors into the SVG; then each is replaced by a variable of the page's style sheet. They only
# have to differ from each other and from every color that matplotlib writes itself.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{number:02x}" for number in range(8))
CONTROL = "#050505"
PAGE_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", CONTROL: "--control"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES)
}
# fonttype none keeps text as text, which the page's fonts draw and a reader can select. hashsalt makes ids, which are
# random otherwise, equal for equal input. parse_math: "$" in a name is not the start of a formula.
STYLE: dict[RcKeyType, str | float | bool] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "searchrl",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
NAME_HEIGHT = 6.5  # height of a name in the cost chart, in points of accuracy
STEP_KEYS = ("step", "training/step", "_step")  # the names of the step in metrics files of trainers in use
_DRAWING = threading.Lock()  # reports are rendered in several threads, but rc settings are process-wide
_FIGURE_NUMBERS = itertools.count(1)


class CostPoint(NamedTuple):
    """One method in the chart of accuracy (in percent) against a cost."""

    cost: float
    accuracy: float
    name: str
    is_control: bool


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over steps; points with no finite value are left out."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def assign_colors(columns: Sequence[ColumnSummary]) -> dict[str, str]:
    """One color per column, repeated after eight; controls share a muted one."""
    colors: dict[str, str] = {}
    for column in columns:
        shown = sum(color != CONTROL for color in colors.values())
        colors[column.name] = CONTROL if column.is_control else SERIES[shown % len(SERIES)]
    return colors


def draw_accuracy(columns: Sequence[ColumnSummary]) -> str:
    """The accuracy of every method as a dot with its 95 % interval, best on top."""
    shown = sorted((c for c in columns if c.accuracy.count), key=lambda column: column.accuracy.mean)
    colors = assign_colors(columns)
    with _drawing():
        figure = Figure(figsize=(7.6, 0.75 + 0.36 * len(shown)))
        axes = figure.add_subplot()
        for height, column in enumerate(shown):
            value, color = column.accuracy, colors[column.name]
            axes.plot([100 * value.low, 100 * value.high], [height, height], color=color, lw=3, solid_capstyle="round")
            axes.plot([100 * value.mean], [height], "o", color=color, ms=8)
            axes.annotate(
                f"{100 * value.mean:.1f}", (100 * value.high, height), (8, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(shown)), [column.name for column in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        # Room for the number to the right of an interval that ends at 100.
        axes.set_xlim(-2, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("accuracy, %")
        return _render_svg(
            figure, "Accuracy of each method with its 95 percent interval; the numbers are in the table above"
        )


def draw_cost(columns: Sequence[ColumnSummary]) -> str:
    """Accuracy against three costs: documents, context tokens, seconds. A line joins the best trade-offs."""
    axes_shown = [
        ("documents", "documents per question"),
        ("context_tokens", "context tokens per question"),
        ("seconds", "seconds per question"),
    ]
    colors = assign_colors(columns)
    with _drawing({"ytick.labelcolor": MUTED}):
        figure = Figure(figsize=(10.4, 3.5))
        for position, (name, title) in enumerate(axes_shown, start=1):
            axes = figure.add_subplot(1, 3, position)
            points = [
                CostPoint(column.estimates[name].mean, 100 * column.accuracy.mean, column.name, column.is_control)
                for column in columns
                if name in column.estimates and column.accuracy.count
            ]
            _scatter(axes, points, colors)
            axes.set_xlabel(title)
            if position == 1:
                axes.set_ylabel("accuracy, %")
        return _render_svg(
            figure, "Accuracy against documents, context tokens and seconds per question, one point a method"
        )


def draw_breakdown(breakdown: Breakdown, columns: Sequence[ColumnSummary]) -> str:
    """Accuracy by the values of one metadata key, one line per method."""
    colors = assign_colors(columns)
    with _drawing({"ytick.labelcolor": MUTED}):
        figure = Figure(figsize=(7.6, 3.2))
        axes = figure.add_subplot()
        positions = range(len(breakdown.values))
        control_markers = itertools.cycle("s^Dv")
        for column in columns:
            means = [100 * breakdown.cells[column.name][value].mean for value in breakdown.values]
            style, marker = (":", next(control_markers)) if column.is_control else ("-", "o")
            color = colors[column.name]
            axes.plot(positions, means, style, marker=marker, ms=6, lw=2, color=color, label=column.name)
        axes.set_xticks(positions, [f"{value}  (n = {breakdown.sizes[value]})" for value in breakdown.values])
        axes.set_xlim(-0.25, len(breakdown.values) - 0.75)
        axes.set_ylim(-4, 104)
        axes.set_ylabel("accuracy, %")
        axes.set_xlabel(breakdown.key)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _render_svg(figure, f"Accuracy by {breakdown.key}, one line a method")


def draw_training(series: Sequence[Series]) -> str:
    """One small chart per training metric: the values, and their running mean."""
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    with _drawing({"ytick.labelcolor": MUTED}):
        figure = Figure(figsize=(3.4 * columns + 0.2, 2.5 * rows))
        for position, entry in enumerate(series, start=1):
            axes = figure.add_subplot(rows, columns, position)
            axes.plot(entry.steps, entry.values, color=SERIES[0], lw=1, alpha=0.45)
            axes.plot(entry.steps, _smooth(entry.values), color=SERIES[0], lw=2)
            axes.set_title(entry.name, fontsize=10, loc="left")
            axes.set_xlabel("step")
        return _render_svg(figure, "Training metrics over steps: " + ", ".join(entry.name for entry in series))


def read_training_metrics(path: Path) -> list[Series]:
    """Read a metrics.jsonl: one object per step, either flat or ``{"step": n, "values": {...}}``. Sorted by name.

    A trainer may be writing to the file: a last line without its end is left out.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: a line is not such an object; the message gives its number.
    """
    if not path.is_file():
        raise NotFound(f"there is no training metrics file {path}")
    points: dict[str, dict[float, float]] = {}
    for number, line in enumerate(read_complete_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InvalidRequest(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise InvalidRequest(f"{path}, line {number}: must be a JSON object")
        if "event" in row:  # of a trainer: a rollback or a pause, which has no metrics
            continue
        step = next((row[key] for key in STEP_KEYS if isinstance(row.get(key), int | float)), None)
        if step is None:
            raise InvalidRequest(f"{path}, line {number}: has no step")
        values = row["values"] if isinstance(row.get("values"), dict) else row
        for name, value in values.items():
            if name not in STEP_KEYS and isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault(name, {})[float(step)] = float(value)  # a resumed run repeats steps: the last counts
    return [_make_series(name, by_step) for name, by_step in sorted(points.items())]


def pick_series(series: Sequence[Series], wanted: Sequence[str], most: int = 6) -> list[Series]:
    """The wanted series that exist, in the wanted order, at most ``most`` of them: two rows of three charts.

    A wanted name also matches as the last part of a path; a series of a single step is left out.
    """
    picked: list[Series] = []
    for name in wanted:
        found = [entry for entry in series if entry.name == name or entry.name.rsplit("/", 1)[-1] == name]
        picked.extend(entry for entry in found if entry not in picked and len(entry.steps) > 1)
    return picked[:most]


def _make_series(name: str, by_step: dict[float, float]) -> Series:
    finite = [(step, value) for step, value in sorted(by_step.items()) if math.isfinite(value)]
    return Series(name, tuple(step for step, _ in finite), tuple(value for _, value in finite))


@contextmanager
def _drawing(changes: dict[RcKeyType, str] | None = None) -> Iterator[None]:
    """Hold the lock and matplotlib's settings for a drawing.

    Warnings about missing glyphs are ignored, because the browser draws the text in the page's own fonts.
    """
    with _DRAWING, rc_context(STYLE), rc_context(changes), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _scatter(axes: Axes, points: Sequence[CostPoint], colors: Mapping[str, str]) -> None:
    """Draw named points, and a line through the methods (not controls) that no cheaper method equals or beats."""
    best: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not point.is_control and (not best or point.accuracy > best[-1].accuracy):
            best.append(point)
    # The Pareto front. Controls are left out: the oracle knows the gold passages, so nothing could be on the line with
    # it.
    axes.plot([p.cost for p in best], [p.accuracy for p in best], color=MUTED, lw=1, ls="--", zorder=1)
    for point in points:
        axes.plot([point.cost], [point.accuracy], "o", color=colors[point.name], ms=8, zorder=2)
    largest = max((point.cost for point in points), default=0.0) or 1.0
    axes.set_xlim(-0.12 * largest, 1.12 * largest)
    axes.set_ylim(-6, 108)
    # Names in the right half stand to the left of their points, where there is room.
    for left in (True, False):
        side = [point for point in points if (point.cost > largest / 2) is left]
        _name_points(axes, side, left=left)


def _name_points(axes: Axes, points: Sequence[CostPoint], *, left: bool) -> None:
    """Write names beside their points, each at least a line above the one below it."""
    lowest = -math.inf
    for point in sorted(points, key=lambda point: point.accuracy):
        height = max(point.accuracy, lowest)
        # Two methods at 61.0 and 62.0: the second name is written at 67.5, so that the two do not cover each other.
        lowest = height + NAME_HEIGHT
        axes.annotate(
            point.name,
            (point.cost, height),
            (-8 if left else 8, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8.5,
        )


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential running mean, corrected for its start; with a weight of 0.8 about the last five values count."""
    smoothed: list[float] = []
    mean, mass = 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(mean / mass)
    return smoothed


def _render_svg(figure: Figure, description: str) -> str:
    """The figure as inline SVG: page colors, page font, unique ids, and a description for screen readers."""
    figure.set_layout_engine("constrained")
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(length=0)
    buffer = io.StringIO()
    # Without date and program the same numbers give the same bytes.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, variable in PAGE_VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    # matplotlib names its own font, whose file the browser does not have.
    text = re.sub(r"font: ([^;\"]*?)(\d+(?:\.\d+)?px)[^;\"]*", r"font: \1\2 var(--font)", text)
    # Inline images share the ids of one page: without a prefix, a clip path of one chart would cut another.
    prefix = f"c{next(_FIGURE_NUMBERS)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = text.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    width = re.search(r'<svg[^>]*?\bwidth="([\d.]+)pt"', text)
    # 1 pt = 4/3 px (96 / 72 dpi): the chart shrinks on a narrow screen and never grows beyond its own size.
    size = f' style="max-width:{float(width.group(1)) * 4 / 3:.0f}px"' if width else ""
    # Twice, for width and height: the pattern begins at <svg, so one call removes only the first that it finds.
    text = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[\d.]+pt"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[\d.]+pt"', r"\1", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}"{size} ', 1)
