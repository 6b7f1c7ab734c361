"""Renders the HTML pages: the report of an analysis, and the list of runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from searchrl.statistics.intervals import RESAMPLES, Estimate
from services.evaluator.reports.analysis import Analysis, ColumnSummary, Controls
from services.evaluator.reports.charts import Series, draw_accuracy, draw_breakdown, draw_cost, draw_training
from services.evaluator.reports.example import Example
from services.evaluator.reports.report_columns import ReportInput
from services.evaluator.runs.provenance_guard import describe_name, find_changes
from services.evaluator.runs.run_progress import RunResults
from services.evaluator.scoring.measures import MEASURE_BY_NAME

TEMPLATES = Path(__file__).parent / "templates"
RUNS_PER_PAGE = 100  # the first visit computes the intervals of each, so a longer page takes longer
SHOWN_MEASURES = (
    "exact_match",
    "f1",
    "gold_recall",
    "searches",
    "documents",
    "context_tokens",
    "cut_answers",
    "cut_documents",
)
MAX_LINES_PER_CHART = 10  # there are eight colors for methods, so with many more lines several look alike


@dataclass(frozen=True, slots=True)
class ExtraSection:
    """A section that the caller adds: paragraphs, then a table. Texts are escaped."""

    title: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class ShownMeasure:
    """A column of the table of methods."""

    name: str
    title: str
    percent: bool


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class ControlRow:
    """A control with its value and its interpretation."""

    name: str
    value: str
    interpretation: str


def render_report(
    data: ReportInput,
    analysis: Analysis,
    *,
    title: str,
    example: Example | None = None,
    training: Sequence[Series] = (),
    sections: Sequence[ExtraSection] = (),
) -> str:
    """The report as one self-contained HTML page."""
    columns = analysis.columns
    controls = explain_controls(analysis.controls)
    lost = [(column.name, kind, count) for column in columns for kind, count in column.lost.items()]
    refused = [(column.name, kind, count) for column in columns for kind, count in column.refused.items()]
    several = set(find_changes(analysis.provenance))
    return load_template("report.html.j2").render(
        title=title,
        data=data,
        analysis=analysis,
        measures=_choose_measures(columns),
        tiles=build_tiles(analysis),
        different_sets=any(column.accuracy.count != analysis.common for column in columns) and analysis.common > 0,
        # Seconds depend on the load, so the chart of costs names it; runs that are joined may differ.
        concurrency=max((record.spec.concurrency for record in data.records), default=0) or "the default number of",
        controls=controls,
        charts=_draw_charts(analysis, training),
        example=example,
        sections=sections,
        lost=lost,
        refused=refused,
        provenance=[
            (describe_name(name), values, name in several)
            for name, values in sorted(analysis.provenance.items())
            if values
        ],
        resamples=RESAMPLES,
        contents=_list_sections(
            analysis, bool(controls), bool(training), example is not None, sections, bool(lost or refused)
        ),
    )


def _choose_measures(columns: Sequence[ColumnSummary]) -> list[ShownMeasure]:
    """The measures that at least one column has."""
    return [
        ShownMeasure(name, MEASURE_BY_NAME[name].title, MEASURE_BY_NAME[name].is_proportion)
        for name in SHOWN_MEASURES
        if any(name in column.estimates for column in columns)
    ]


def _draw_charts(analysis: Analysis, training: Sequence[Series]) -> dict[str, object]:
    scored = any(column.accuracy.count for column in analysis.columns)
    few = len(analysis.columns) <= MAX_LINES_PER_CHART
    breakdowns = [
        # Markup: our own SVG, in which matplotlib has escaped the names.
        Markup(draw_breakdown(breakdown, analysis.columns)) if few and scored else ""
        for breakdown in analysis.breakdowns
    ]
    return {
        "accuracy": Markup(draw_accuracy(analysis.columns)) if scored else "",
        "cost": Markup(draw_cost(analysis.columns)) if scored else "",
        "breakdowns": breakdowns,
        "training": Markup(draw_training(training)) if training else "",
    }


def build_tiles(analysis: Analysis) -> list[Tile]:
    """The best method, its gain over the baseline, and its cost."""
    competing = [column for column in analysis.columns if not column.is_control and column.accuracy.count]
    if not competing:
        return []
    best = max(competing, key=lambda column: column.accuracy.mean)
    tiles = [
        Tile("Best method", best.name, f"accuracy {_format_percent(best.accuracy)}"),
    ]
    for comparison in analysis.comparisons:
        if comparison.first == best.name and comparison.second == analysis.baseline and comparison.result.count:
            result = comparison.result
            interval = f"{100 * result.low:+.1f} to {100 * result.high:+.1f}, n = {result.count}"
            tiles.append(Tile(f"Gain over {analysis.baseline}", f"{100 * result.difference:+.1f} points", interval))
    if best.gap_closed is not None and best.name != analysis.baseline:
        tiles.append(Tile("Gap to the oracle closed", f"{100 * best.gap_closed:.0f} %", "measured from the baseline"))
    if "documents" in best.estimates:
        seconds = best.estimates.get("seconds_p50")
        detail = f"per question; median time {format_number(seconds.mean)} s" if seconds else "per question"
        tiles.append(Tile("Documents", format_number(best.estimates["documents"].mean), detail))
    return tiles


def explain_controls(controls: Controls) -> list[ControlRow]:
    """The controls that were run, each with an explanation of its value."""
    rows: list[ControlRow] = []
    if controls.closed_book is not None:
        text = "Accuracy without any document: what the generator knows already. Search has to add to it."
        rows.append(ControlRow("Closed book", _format_percent(controls.closed_book), text))
    if controls.oracle is not None:
        text = "Accuracy from the gold passages: an upper bound for every searcher with this generator."
        rows.append(ControlRow("Oracle documents", _format_percent(controls.oracle), text))
    if controls.random_retriever is not None:
        text = "Accuracy from random passages: the value of arbitrary documents."
        rows.append(ControlRow("Random retriever", _format_percent(controls.random_retriever), text))
    if controls.gold_checked:
        value = f"{controls.missing} of {controls.with_gold}"
        rows.append(
            ControlRow("Gold missing", value, "Questions that need a passage that the corpus does not contain.")
        )
    if controls.unanswerable is not None:
        value = f"{100 * controls.unanswerable:.1f} %"
        text = (
            f"Questions that lack a gold passage or are answered wrong even with it, out of the "
            f"{controls.unanswerable_of} for which this is known. No method can be expected to answer them."
        )
        rows.append(ControlRow("Not answerable", value, text))
    return rows


def _format_percent(value: Estimate) -> str:
    return f"{100 * value.mean:.1f} % ({100 * value.low:.1f}–{100 * value.high:.1f})"


def _list_sections(
    analysis: Analysis, controls: bool, training: bool, example: bool, sections: Sequence[ExtraSection], failures: bool
) -> list[tuple[str, str]]:
    entries = [("methods", "Methods"), ("cost", "Cost"), ("differences", "Differences")]
    entries += [(f"by-{number}", f"By {entry.key}") for number, entry in enumerate(analysis.breakdowns, start=1)]
    optional = [
        (controls, "controls", "Controls"),
        (training, "training", "Training"),
        (example, "example", "Example"),
    ]
    entries += [(id, name) for shown, id, name in optional if shown]
    entries += [(f"extra-{number}", section.title) for number, section in enumerate(sections, start=1)]
    entries += [("provenance", "Provenance")] if analysis.provenance else []
    return [*entries, ("failures", "Failures")] if failures else entries


def render_runs(runs: Sequence[RunResults], *, older: int | None = None) -> str:
    """The list of runs as HTML; ``older`` is the position at which the next page starts."""
    return load_template("runs.html.j2").render(runs=runs, older=older)


@cache
def load_template(name: str) -> Template:
    """A template with our filters. Values are escaped; the page's own style and script are inserted unescaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Set here and not by suffix: jinja2 would not take *.j2 for HTML. Names, questions and answers come from
        # outside.
        autoescape=True,
        # A misspelt name fails the rendering, where it would otherwise leave a gap in the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = format_number
    environment.filters["p_value"] = format_p_value
    environment.globals["style"] = Markup((TEMPLATES / "style.css").read_text())
    environment.globals["script"] = Markup((TEMPLATES / "script.js").read_text())
    return environment.get_template(name)


def format_number(value: float) -> str:
    """About three significant digits, never with an exponent; numbers from 100 on as integers."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 or value == 0 else 4
    return f"{value:.{digits}f}"


def format_p_value(value: float) -> str:
    """Three decimals, and "< 0.001" below them: random sign flips are not more precise."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
