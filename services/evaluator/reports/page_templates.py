"""How does a template become a page that needs nothing else?"""

import math
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

FOLDER = Path(__file__).parent / "templates"


@cache
def page_template(name: str) -> Template:
    """A template with our filters; values are escaped, the page's own style and script are not."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short_number
    environment.filters["p_value"] = p_value_text
    environment.globals["style"] = Markup((FOLDER / "style.css").read_text())
    environment.globals["script"] = Markup((FOLDER / "script.js").read_text())
    return environment.get_template(name)


def short_number(value: float) -> str:
    """Three significant digits, never in exponents; large numbers in full."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 or value == 0 else 4
    return f"{value:.{digits}f}"


def p_value_text(value: float) -> str:
    """At most as exact as the test."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
