"""Loads the page templates, with their filters and with style and script inlined."""

import math
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

FOLDER = Path(__file__).parent / "templates"


@cache
def load_template(name: str) -> Template:
    """A template with our filters. Values are escaped; the page's own style and script are inserted unescaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = format_number
    environment.filters["p_value"] = format_p_value
    environment.globals["style"] = Markup((FOLDER / "style.css").read_text())
    environment.globals["script"] = Markup((FOLDER / "script.js").read_text())
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
