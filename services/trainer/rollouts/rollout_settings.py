"""Defines the settings of dispatch, groups, retries and outages."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class OutageSettings(BaseModel):
    """When failures of infrastructure stop the dispatch, and how recovery is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # With these defaults the seventh failure among the last 32 rollouts pauses dispatch. A lower share pauses it for
    # single failures, a higher one loses more rollouts first.
    failure_ratio: float = Field(default=0.2, gt=0, le=1, description="Share of failed rollouts that pauses dispatch.")
    window: PositiveInt = Field(default=32, description="Number of last rollouts over which the share is taken.")
    probe_seconds: PositiveFloat = Field(default=2.0, description="Time between probes while paused.")


class RolloutSettings(BaseModel):
    """The size of a step's batch and the rules of its groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups_per_step: PositiveInt = Field(default=24, description="Questions per training step.")
    group_size: PositiveInt = Field(default=8, description="Rollouts per question.")
    max_staleness: NonNegativeInt = Field(
        default=0, description="Policy versions a token may be older than the learner."
    )
    stale_groups: Literal["drop", "wait"] = Field(
        default="drop",
        description="Groups beyond that: drop them and start them again, or let the learner wait for them.",
    )
    infra_retries: NonNegativeInt = Field(default=2, description="New attempts of a rollout whose services failed.")
    retry_pause_seconds: NonNegativeFloat = Field(
        default=0.5, description="Pause before the first of them; doubles each time."
    )
    min_group: PositiveInt = Field(default=2, description="Usable rollouts below which a group is started again.")
    max_restarts: NonNegativeInt = Field(
        default=5, description="New starts of a group that infrastructure left underfilled; then the run stops."
    )
    max_unscorable: float = Field(
        default=0.1, ge=0, le=1, description="Share of the questions that may be left out because they are refused."
    )
    # A series of refusals has another cause than its questions.
    unscorable_in_a_row: PositiveInt = Field(
        default=8, description="Groups in a row that cannot be scored, after which the run stops."
    )
    # No rollout ends during an outage, so this is also the longest outage that a run waits out.
    stall_seconds: NonNegativeFloat = Field(
        default=3600.0, description="Time without the end of any rollout after which the run stops; 0: never."
    )
    truncated: Literal["train", "mask"] = Field(
        default="mask",
        description="Rollouts cut by a token limit: train on them, or leave them out of every statistic.",
    )
    outage: OutageSettings = Field(default=OutageSettings(), description="When to pause dispatch.")
