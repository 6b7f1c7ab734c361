"""Reads series of training metrics from the trainer's metrics file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.errors import InvalidRequest, NotFound

STEP_KEYS = ("step", "training/step", "_step")


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over steps; points with no finite value are left out."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_training_metrics(path: Path) -> list[Series]:
    """Read a metrics.jsonl: one object per step, either flat or ``{"step": n, "values": {...}}``. Sorted by name.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: a line is not such an object; the message gives its number.
    """
    if not path.is_file():
        raise NotFound(f"there is no training metrics file {path}")
    points: dict[str, dict[float, float]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidRequest(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise InvalidRequest(f"{path}, line {number}: must be a JSON object")
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
