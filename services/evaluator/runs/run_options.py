"""Limits and habits of this evaluator."""

from dataclasses import dataclass
from pathlib import Path

from searchrl.clients.retry_policy import RetryPolicy
from searchrl.errors import OUTAGE_KINDS

EPISODE_RETRIES = RetryPolicy(attempts=5, first_seconds=0.5, max_seconds=15.0, kinds=OUTAGE_KINDS)
"""An answer is worth asking for again after every kind of outage, with waits that a restart fits into."""


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
    retries: RetryPolicy = EPISODE_RETRIES
    largest_losing_streak: int = 100
    largest_refused_share: float = 0.1
    passes: int = 2
    probe_seconds: float = 5.0
    watch_seconds: float = 0.5
