"""Defines the events of a run: lines of ``metrics.jsonl`` beside those of its steps and validations.

Events are never removed, also not by a run that continues from an earlier step. So the rollbacks among them are the
state of the self-repair: how often the run was rolled back, with which learning rate it continues, and from which
policy version on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Self

EVENT = "event"
"""Field that only events have; its value is their kind."""
ROLLBACK = "rollback"

Values = Mapping[str, float | int | str | bool | None]


def is_event(line: Mapping[str, object]) -> bool:
    """Whether the line of ``metrics.jsonl`` is that of an event."""
    return EVENT in line


@dataclass(frozen=True, slots=True)
class Rollback:
    """One return to an earlier checkpoint.

    Attributes:
        from_step: step that was trained when the trouble was noticed.
        to_step: step of the checkpoint.
        rate_factor: of all learning rates from now on, the product of all rollbacks.
        learning_rate: AdamW's of the policy with this factor, before its schedule.
        policy_version: under which the restored weights are published.
        lost_groups: groups that were sampled after the checkpoint, trained or not.
        time: seconds since the epoch.
    """

    cause: str
    from_step: int
    to_step: int
    rate_factor: float
    learning_rate: float
    policy_version: int
    lost_groups: int
    time: float

    @classmethod
    def from_line(cls, line: Values) -> Self:
        """Read the line of a rollback."""
        return cls(**{name: line[name] for name in cls.__slots__})  # type: ignore[arg-type]

    def to_line(self) -> dict[str, float | int | str | bool | None]:
        """Return the line; its step is the one after which the run continues."""
        return {EVENT: ROLLBACK, "step": self.to_step, **asdict(self)}


def find_rollbacks(events: Iterable[Values]) -> list[Rollback]:
    """Return the rollbacks among the events, in their order."""
    return [Rollback.from_line(event) for event in events if event[EVENT] == ROLLBACK]
