"""Limits and habits of this evaluator."""

from dataclasses import dataclass, field
from pathlib import Path

from services.evaluator.runs.retry import Backoff


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Limits and habits of this evaluator.

    Attributes:
        questions_dir: only question files under it may be named; None: none at all.
        passes: how often a run goes over its questions, so that what a short outage cost is asked again.
        probe_seconds: how often a store that fails is tried again.
        watch_seconds: least time between two messages of a watch.
    """

    default_concurrency: int = 8
    max_concurrency: int = 64
    questions_dir: Path | None = None
    backoff: Backoff = field(default_factory=Backoff)
    largest_losing_streak: int = 100
    largest_refused_share: float = 0.1
    passes: int = 2
    probe_seconds: float = 5.0
    watch_seconds: float = 0.5
