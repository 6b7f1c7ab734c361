"""Defines the options that apply to all runs of an evaluator."""

from dataclasses import dataclass
from pathlib import Path

from searchrl.clients.retry_policy import RetryPolicy
from searchrl.errors import OUTAGE_KINDS

EPISODE_RETRIES = RetryPolicy(attempts=5, first_seconds=0.5, max_seconds=15.0, kinds=OUTAGE_KINDS)
"""For every kind of outage. Pauses of up to 0.5, 1, 2 and 4 seconds, plus the server's Retry-After, outlast a quick
restart of the generator; the next pass over the questions covers longer outages.
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options that apply to all runs of an evaluator. Where a default has a reason, the settings give it.

    Attributes:
        questions_dir: only question files under it may be named; None: none at all.
        max_consecutive_failures, max_refused_fraction: see ``FailureLimits``.
        passes: how often a run goes over its questions, so that those lost to a short outage are asked again.
        probe_seconds: how often a failing store is tried again.
        watch_seconds: shortest time between two messages of a watch; a run may record many episodes per second.
    """

    default_concurrency: int = 8
    max_concurrency: int = 64
    questions_dir: Path | None = None
    retries: RetryPolicy = EPISODE_RETRIES
    max_consecutive_failures: int = 100
    max_refused_fraction: float = 0.1
    passes: int = 2
    probe_seconds: float = 5.0
    watch_seconds: float = 0.5
