"""Write the tables of values in the chart's README: ``python scripts/chart_readme.py`` (``--check`` only compares)."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "deploy" / "helm" / "searchrl"
START, END = "<!-- values: written by scripts/chart_readme.py -->", "<!-- end of values -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One documented key."""

    path: tuple[str, ...]
    default: Any
    description: str


def rows(values_file: Path) -> Iterator[Row]:
    """Yield every key with a ``# --`` comment above it, in the file's order."""
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
    return f"`{text}`".replace("|", "\\|")


def build() -> str:
    """Return the README with its tables rewritten."""
    text = (CHART / "README.md").read_text()
    head, _, rest = text.partition(START)
    return f"{head}{START}\n\n{tables(CHART / 'values.yaml')}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Run the command. Exit code 1 if a key has no description, or with ``--check`` if the README is out of date."""
    if missing := undocumented(CHART / "values.yaml"):
        sys.stderr.write(f"values without a '# --' comment: {', '.join(missing)}\n")
        return 1
    target, text = CHART / "README.md", build()
    if "--check" in sys.argv[1:]:
        return 0 if target.read_text() == text else 1
    target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
