"""GRPO and its relatives: a rollout's advantage is its reward compared with the other rollouts of the same question.

The defaults of ``grpo`` are GRPO (2402.03300) with DAPO's upper clip and mean over tokens (2503.14476), without a KL
term and without groups of equal rewards. The other kinds have those of their papers.
"""

from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from services.trainer.algorithms.base import Algorithm, AlgorithmBase, StepRows, UpdateReport, group_rows, update_policy
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.advantages import GroupAdvantage
from services.trainer.losses.aggregation import Aggregation
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.rollouts.group import Group


class GrpoLoss(LossSettings):
    """PPO's clipped loss."""

    policy: Literal["ppo"] = Field(default="ppo", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]


class GspoLoss(LossSettings):
    """One clipped ratio per rollout, the geometric mean of its tokens'."""

    policy: Literal["gspo"] = Field(default="gspo", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]


class CispoLoss(LossSettings):
    """REINFORCE with the clipped ratio as weight."""

    policy: Literal["cispo"] = Field(default="cispo", description="Form of the policy loss.")  # pyright: ignore[reportIncompatibleVariableOverride]
    # MiniMax-M1 has no lower bound and does not state its upper one. 5 is what TRL recommends (epsilon_high of its
    # GRPOConfig), which names ScaleRL (2510.13786) as its source; it is the largest weight, 1 + clip_high here.
    clip_low: NonNegativeFloat | None = Field(default=1.0, description="Ratios below 1 - clip_low are clipped.")
    clip_high: NonNegativeFloat | None = Field(default=4.0, description="Ratios above 1 + clip_high are clipped.")


class DrGrpoLoss(GrpoLoss):
    """PPO's clipped loss, divided by a constant instead of by numbers of tokens."""

    clip_high: NonNegativeFloat | None = Field(default=0.2, description="Ratios above 1 + clip_high are clipped.")
    aggregation: Aggregation | None = Field(default="seq_sum_const", description="How token losses become one number.")
    aggregation_constant: PositiveFloat | None = Field(
        default=None, description="Tokens per row in seq_sum_const; None: the most that the searcher may sample."
    )

    @model_validator(mode="after")
    def _check_constant(self) -> Self:
        return self  # replaces the check of the base class: the constant follows from the searcher's limits


class GroupSettings(AlgorithmBase):
    """Advantages from the statistics of a group."""

    advantage: GroupAdvantage = Field(default="group_std", description="Baseline and scale of a group.")
    scale: float = Field(default=1.0, gt=0, description="Factor of all advantages.")
    # Such groups are in no denominator, so the others keep the weight that they would have without them.
    drop_zero_variance: bool = Field(
        default=True, description="Groups without any advantage (equal rewards) leave the batch."
    )
    dynamic_sampling: bool = Field(
        default=False, description="Groups of equal rewards are replaced by groups of other questions."
    )
    # The paper has no bound; verl's scripts of DAPO stop at 10.
    max_sample_batches: PositiveInt = Field(
        default=10, description="Batches of groups_per_step groups that one step may roll out for that."
    )
    loss: LossSettings = Field(default=GrpoLoss(), description="Loss of the policy.")

    @property
    def sample_batches(self) -> int:
        """Batches of groups that one step may roll out, to replace groups that teach nothing."""
        return self.max_sample_batches if self.dynamic_sampling else 1

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the first policy is needed, for a KL term."""
        return self.loss.kl_coefficient > 0


class GrpoSettings(GroupSettings):
    """Rewards standardized in their group."""

    kind: Literal["grpo"] = "grpo"
    loss: GrpoLoss = Field(default=GrpoLoss(), description="Loss of the policy.")  # pyright: ignore[reportIncompatibleVariableOverride]


class DapoSettings(GrpoSettings):
    """GRPO with a higher upper bound and a mean over tokens, on groups that all have a learning signal."""

    overlong_penalty: ClassVar[float] = 1.0
    kind: Literal["dapo"] = "dapo"  # pyright: ignore[reportIncompatibleVariableOverride]
    dynamic_sampling: bool = Field(
        default=True, description="Groups of equal rewards are replaced by groups of other questions."
    )


class DrGrpoSettings(GroupSettings):
    """GRPO without its biases: no division by the standard deviation of a group or by the length of a rollout."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    advantage: GroupAdvantage = Field(default="mean_baseline", description="Baseline and scale of a group.")
    drop_zero_variance: bool = Field(
        default=False, description="Groups without any advantage (equal rewards) leave the batch."
    )
    loss: DrGrpoLoss = Field(default=DrGrpoLoss(), description="Loss of the policy.")  # pyright: ignore[reportIncompatibleVariableOverride]


class GspoSettings(GroupSettings):
    """GRPO with one ratio per rollout."""

    credits_turns: ClassVar[bool] = False
    kind: Literal["gspo"] = "gspo"
    drop_zero_variance: bool = Field(
        default=False, description="Groups without any advantage (equal rewards) leave the batch."
    )
    loss: GspoLoss = Field(default=GspoLoss(), description="Loss of the policy.")  # pyright: ignore[reportIncompatibleVariableOverride]


class CispoSettings(GroupSettings):
    """GRPO whose clip bounds the weight of a token instead of taking its gradient."""

    kind: Literal["cispo"] = "cispo"
    loss: CispoLoss = Field(default=CispoLoss(), description="Loss of the policy.")  # pyright: ignore[reportIncompatibleVariableOverride]


Settings = TypeVar("Settings", bound=GroupSettings)


class GroupRelative(Algorithm[Settings], Generic[Settings]):
    """Trains on advantages of a group with the loss of the settings."""

    def rows(self, groups: Sequence[Group], temperature: float) -> StepRows:
        settings = self.settings
        drop, credits_turns = settings.drop_zero_variance, settings.credits_turns
        return StepRows(group_rows(groups, settings.advantage, settings.scale, temperature, drop, credits_turns))

    def update(self, learners: LearnerGroup, step_rows: StepRows, step: int) -> UpdateReport:
        return update_policy(learners.policy, TrainBatch.of(step_rows.rows, step), self.loss, self.update_settings)

    @property
    def loss(self) -> LossSettings:
        """The loss in use."""
        return self.settings.loss


class Grpo(GroupRelative[GrpoSettings]):
    """Group-relative policy optimization."""


class Dapo(GroupRelative[DapoSettings]):
    """Decoupled clip and dynamic sampling policy optimization (2503.14476)."""


class DrGrpo(GroupRelative[DrGrpoSettings]):
    """GRPO done right (2503.20783)."""

    @property
    def loss(self) -> LossSettings:
        loss = self.settings.loss
        if loss.aggregation_constant is not None or loss.reduction != "seq_sum_const":
            return loss
        return loss.model_copy(update={"aggregation_constant": float(self.max_sampled_tokens)})


class Gspo(GroupRelative[GspoSettings]):
    """Group sequence policy optimization (2507.18071)."""


class Cispo(GroupRelative[CispoSettings]):
    """Clipped importance-sampling-weight policy optimization (2506.13585)."""
