"""Generates the tables of values in the chart's README from the comments of ``values.yaml``."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.generate.marked_section import replace_section

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "searchrl"


@dataclass(frozen=True, slots=True)
class Row:
    """One documented key."""

    path: tuple[str, ...]
    default: Any
    description: str


def rows(values_file: Path) -> Iterator[Row]:
    """Yield every key with a ``# --`` comment above it, in the file's order."""
    # YAML parsers drop comments, so the lines are read as well: a comment belongs to the next key, whose path follows
    # from its indentation.
    lines = values_file.read_text().splitlines()
    values = yaml.safe_load("\n".join(lines))
    path: list[tuple[int, str]] = []
    comment = ""
    for line in lines:
        text = line.strip()
        if text.startswith("# -- "):
            comment = text.removeprefix("# -- ")
            continue
        if not text or text.startswith(("#", "- ")) or ":" not in text:
            continue
        indent = len(line) - len(line.lstrip())
        # Keys with the same or a deeper indentation are no parents of this one.
        path = [*(part for part in path if part[0] < indent), (indent, text.partition(":")[0].strip('"'))]
        if comment:
            keys = tuple(key for _, key in path)
            yield Row(keys, _look_up(values, keys), comment)
            comment = ""


def tables(values_file: Path) -> str:
    """Return one table for each key of the first level; keys without parts share the table "general"."""
    sections: dict[str, list[Row]] = {}
    for row in rows(values_file):
        sections.setdefault(row.path[0] if len(row.path) > 1 else "general", []).append(row)
    parts = []
    for name, members in sections.items():
        head = [f"### {name}", "", "| key | default | meaning |", "|---|---|---|"]
        body = [f"| `{'.'.join(row.path)}` | {_shown(row.default)} | {row.description} |" for row in members]
        parts.append("\n".join([*head, *body]))
    return "\n\n".join(parts)


def undocumented(values_file: Path) -> list[str]:
    """Return the undocumented keys.

    A key is documented if it or a key above it has a comment, or, under ``engines``, if the same key of the generator's
    engine or of ``workload`` has one.
    """
    documented = {row.path for row in rows(values_file)}
    twins = {path[2:] for path in documented if path[:2] == ("engines", "generator")}
    twins |= {path[1:] for path in documented if path[0] == "workload"}
    missing = []
    for path in _leaves(yaml.safe_load(values_file.read_text())):
        above = {path[:length] for length in range(1, len(path) + 1)}
        is_twin = path[0] == "engines" and any(path[2:length] in twins for length in range(3, len(path) + 1))
        if not above & documented and not is_twin:
            missing.append(".".join(path))
    return missing


def _leaves(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, (*above, str(key)))
    else:
        yield above


def _look_up(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _shown(value: Any) -> str:
    if value == "":
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    # A bar ends a cell of a Markdown table, even inside code.
    return f"`{text}`".replace("|", "\\|")


def files() -> dict[str, str]:
    """Return the text of the README by its path in the repository.

    Raises:
        ValueError: a value has no description.
    """
    if missing := undocumented(CHART / "values.yaml"):
        raise ValueError(f"values without a '# --' comment: {', '.join(missing)}")
    return {"deploy/helm/searchrl/README.md": build()}


def build() -> str:
    """Return the README with its tables rewritten."""
    return replace_section((CHART / "README.md").read_text(), "values", tables(CHART / "values.yaml"))
