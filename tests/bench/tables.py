"""Formats a benchmark's results as the Markdown tables of the documentation."""

from collections.abc import Mapping, Sequence


def markdown_table(title: str, columns: Sequence[str], results: Sequence[Mapping[str, object]]) -> None:
    """Print a Markdown table of the given columns."""
    print(format_table(title, columns, results))  # noqa: T201 - a benchmark's output


def format_table(title: str, columns: Sequence[str], results: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table of the given columns, below its title."""
    lines = [title, "", row_of(columns), row_of(["---"] * len(columns))]
    lines += [row_of([cell_of(result[column]) for column in columns]) for result in results]
    return "\n".join(lines)


def row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell_of(value: object) -> str:
    """Format a number with three significant digits, or with all digits before the decimal point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
