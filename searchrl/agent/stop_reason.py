"""Enumerates the reasons why a search loop ends."""

from enum import StrEnum


class StopReason(StrEnum):
    """Values of ``Trajectory.stop_reason``; also a metric label."""

    COMPLETED = "completed"  # the policy said it was done, or answered
    MAX_SEARCHES = "max_searches"
    CONTEXT_OVERFLOW = "context_overflow"
    TRUNCATED = "truncated"  # the last turn hit its token limit
    MALFORMED = "malformed"  # the protocol has no reply to this output
    TIME_LIMIT = "time_limit"
