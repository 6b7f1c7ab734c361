"""What limits and habits does this evaluator have?"""

from dataclasses import dataclass, field
from pathlib import Path

from services.evaluator.runs.retry import Backoff


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Limits and habits of this evaluator.

    Attributes:
        questions_dir: only question files under it may be named; None: none at all.
        watch_seconds: least time between two messages of a watch.
    """

    default_concurrency: int = 8
    max_concurrency: int = 64
    questions_dir: Path | None = None
    backoff: Backoff = field(default_factory=Backoff)
    largest_losing_streak: int = 100
    watch_seconds: float = 0.5
