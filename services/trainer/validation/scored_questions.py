"""Keeps the scored questions of one validation in a file, so that a resumed run answers none of them again.

The first line names what the rows belong to: the weights and the questions. A file of others is replaced.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from searchrl.domain.trajectory import NO_REWARD, Outcome, Reward, Trajectory
from searchrl.storage.durable_files import atomic_path, explain_disk_full, read_complete_lines


@dataclass(frozen=True, slots=True)
class ScoredQuestion:
    """One answered question. ``reward`` is None if a service refused it, which is not a reward of 0."""

    question_id: str
    outcome: str
    reward: float | None
    reward_parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    stop_reason: str = ""
    well_formed: bool = True
    answer: str = ""
    searches: int = 0
    sampled_tokens: int = 0
    turn_texts: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    document_ids: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, question_id: str, outcome: Outcome, trajectory: Trajectory | None) -> "ScoredQuestion":
        """Return the row of an outcome; a question that is refused before its end has no trajectory."""
        unscored = isinstance(outcome, NO_REWARD)
        ended = trajectory or Trajectory(question_id)
        return cls(
            question_id,
            outcome=type(outcome).__name__,
            reward=None if unscored else outcome.value,
            reward_parts={} if unscored else dict(outcome.parts),
            reason="" if isinstance(outcome, Reward) else outcome.reason,
            stop_reason=ended.stop_reason,
            well_formed=ended.well_formed,
            answer=ended.answer or "",
            searches=ended.searches,
            sampled_tokens=sum(ended.tokens.mask),
            turn_texts=[turn.text for turn in ended.turns],
            queries=[query for turn in ended.turns for query in turn.queries],
            document_ids=[passage.id for passage in ended.documents],
        )

    @property
    def success(self) -> float | None:
        """1 if the answer was right, 0 if not; None without a reward, or if the reward does not say so."""
        return None if self.reward is None else self.reward_parts.get("correct")


class ScoredQuestions:
    """The rows of one validation, in the file that keeps them."""

    def __init__(self, path: Path, belongs_to: Mapping[str, str]) -> None:
        self._path = path
        self._belongs_to = dict(belongs_to)
        self.rows: dict[str, ScoredQuestion] = {}

    @classmethod
    def open(cls, path: Path, belongs_to: Mapping[str, str]) -> "ScoredQuestions":
        """Read the rows of an earlier process, without one that was being written; start the file if there are none."""
        found = cls(path, belongs_to)
        found.rows = read_scored(path, found._belongs_to)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written again, because a row that a killed process left incomplete would swallow the next one.
        lines = [found._belongs_to, *map(asdict, found.rows.values())]
        with explain_disk_full(str(path), "free some space and resume"), atomic_path(path, unique=False) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return found

    def add(self, row: ScoredQuestion) -> None:
        """Append a row. Not flushed to the disk: after a power cut, questions without a row are answered again."""
        line = json.dumps(asdict(row)) + "\n"
        with explain_disk_full(str(self._path), "free some space and resume"), self._path.open("a") as file:
            file.write(line)
        self.rows[row.question_id] = row

    def summarize(self) -> dict[str, float]:
        """Return the means over the questions that have a reward, and the number of those and of the others.

        Without ``success`` if the reward never says whether an answer was right: that is not a success of 0.
        """
        scored = [row for row in self.rows.values() if row.reward is not None]
        values: dict[str, float] = {"questions": len(scored), "unscorable": len(self.rows) - len(scored)}
        if not scored:
            return values
        judged = [row.success for row in scored if row.success is not None]
        if judged:
            values["success"] = fmean(judged)
        return values | {
            "reward": fmean(row.reward or 0.0 for row in scored),
            "searches": fmean(row.searches for row in scored),
            "documents": fmean(len(row.document_ids) for row in scored),
            "well_formed": fmean(row.well_formed for row in scored),
            "turns": fmean(len(row.turn_texts) for row in scored),
            "sampled_tokens": fmean(row.sampled_tokens for row in scored),
        }

    def values(self, metric: str) -> dict[str, float]:
        """Return the metric (``success`` or ``reward``) of every question that has it, by question id."""
        found = {name: row.success if metric == "success" else row.reward for name, row in self.rows.items()}
        return {name: value for name, value in found.items() if value is not None}


def read_scored(path: Path, belongs_to: Mapping[str, str]) -> dict[str, ScoredQuestion]:
    """Read the rows of a file by question id; none if it is missing, or its first line names something else.

    Only the names in ``belongs_to`` are compared.
    """
    if not path.exists():
        return {}
    try:
        header, *rows = [json.loads(line) for line in read_complete_lines(path)] or [{}]
    except (
        ValueError
    ):  # a power cut may leave anything in a file that was not flushed; its questions are answered again
        return {}
    if any(header.get(name) != value for name, value in belongs_to.items()):
        return {}
    found: list[dict[str, Any]] = rows
    return {row["question_id"]: ScoredQuestion(**row) for row in found}
