"""Settings of the losses, optimizers and schedules that a training loop passes to the learner."""

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

PolicyLoss = Literal["ppo", "gspo", "cispo", "reinforce", "cross_entropy"]
Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_sum_const", "prompt_mean"]
KlEstimator = Literal["k1", "k2", "k3"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossSettings(_Settings):
    """Everything that turns log-probabilities and advantages into one number."""

    policy: PolicyLoss = Field(
        default="ppo", description="Form of the policy loss; cross_entropy reads advantages as weights."
    )
    clip_low: NonNegativeFloat | None = Field(
        default=None, description="Ratios below 1 - clip_low are clipped; None: 0.2, of gspo 0.0003."
    )
    clip_high: NonNegativeFloat | None = Field(
        default=None, description="Ratios above 1 + clip_high are clipped; None: 0.28, of gspo 0.0004."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Bound on the loss of bad tokens: at most dual_clip x |A| (verl: clip_ratio_c)."
    )
    aggregation: Aggregation | None = Field(
        default=None, description="How token losses become one number; None: token_mean, of gspo seq_mean_token_mean."
    )
    aggregation_constant: PositiveFloat | None = Field(default=None, description="Tokens per row in seq_sum_const.")
    old_policy: Literal["behavior", "proximal"] = Field(default="behavior", description="Old policy of the ratio.")
    importance_ratio_cap: PositiveFloat = Field(
        default=2.0,
        description="Cap of the per-token importance weight (old_policy proximal, reinforce); .inf: no cap.",
    )
    sequence_ratio_low: NonNegativeFloat = Field(default=0.0, description="Rows whose mean ratio is lower are masked.")
    sequence_ratio_high: PositiveFloat | None = Field(
        default=None, description="Rows whose mean ratio is higher are masked."
    )
    kl_coefficient: NonNegativeFloat = Field(default=0.0, description="Weight of the KL to the reference policy.")
    kl_estimator: KlEstimator = Field(default="k2", description="Estimator of that KL; each has the true gradient.")
    entropy_coefficient: float = Field(default=0.0, description="Weight of the entropy bonus.")
    llds_coefficient: NonNegativeFloat = Field(
        default=0.0, description="Weight of the penalty on good actions that became less likely."
    )
    llds_threshold: NonNegativeFloat = Field(default=0.0, description="Drop in nats per action that is free.")

    @model_validator(mode="after")
    def _check_constant(self) -> Self:
        if self.aggregation == "seq_sum_const" and self.aggregation_constant is None:
            raise ValueError(
                "aggregation seq_sum_const needs aggregation_constant, e.g. the largest number of action tokens"
            )
        return self

    @property
    def clip_range(self) -> tuple[float, float]:
        """Smallest and largest ratio that is not clipped.

        The defaults for single tokens are DAPO's 0.2 and 0.28 (2503.14476). A mean over a sequence varies far less, so
        GSPO's paper (2507.18071) clips at 3e-4 and 4e-4.
        """
        low, high = (3e-4, 4e-4) if self.policy == "gspo" else (0.2, 0.28)
        return 1 - (low if self.clip_low is None else self.clip_low), 1 + (
            high if self.clip_high is None else self.clip_high
        )

    @property
    def reduction(self) -> Aggregation:
        """The aggregation in use."""
        return self.aggregation or ("seq_mean_token_mean" if self.policy == "gspo" else "token_mean")

    @property
    def uses_every_token(self) -> bool:
        """Whether tokens with advantage 0 have a gradient too."""
        return self.kl_coefficient > 0 or self.entropy_coefficient != 0 or self.llds_coefficient > 0


class ValueLossSettings(_Settings):
    """The critic's regression toward returns."""

    clip: PositiveFloat | None = Field(
        default=0.2, description="Largest trusted move away from the old value; None: no clip."
    )
    coefficient: PositiveFloat = Field(default=0.5, description="Weight of the squared error.")
    aggregation: Aggregation = Field(default="token_mean", description="How token losses become one number.")
    aggregation_constant: PositiveFloat | None = Field(default=None, description="Tokens per row in seq_sum_const.")


class GaeSettings(_Settings):
    """Advantages under a critic."""

    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount per trainable token.")
    gae_lambda: float = Field(default=1.0, ge=0, le=1, description="Lambda of generalized advantage estimation.")
    whiten: bool = Field(default=True, description="Bring advantages to mean 0 and variance 1 over trainable tokens.")
    min_std: NonNegativeFloat = Field(
        default=0.1, description="Whitening never divides by less, in reward units, so that it cannot amplify noise."
    )
    kl_coefficient: NonNegativeFloat = Field(default=0.0, description="Penalty per token: times k1 to the reference.")


class ScheduleSettings(_Settings):
    """Learning rate over optimizer steps, as a factor of the base rate."""

    kind: Literal["constant", "linear", "cosine"] = Field(default="constant", description="Shape after the warm-up.")
    warmup_steps: NonNegativeInt = Field(default=0, description="Steps of linear warm-up.")
    total_steps: PositiveInt | None = Field(default=None, description="Step at which the decay ends.")
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="Factor at the end of the decay.")

    @model_validator(mode="after")
    def _check_total(self) -> Self:
        if self.kind != "constant" and self.total_steps is None:
            raise ValueError(f"a {self.kind} schedule needs total_steps")
        return self


class OptimSettings(_Settings):
    """The optimizer of one model."""

    kind: Literal["adamw", "muon"] = Field(default="adamw", description="muon: Muon on matrices, AdamW on the rest.")
    learning_rate: NonNegativeFloat = Field(default=5e-4, description="Rate of AdamW.")
    muon_learning_rate: NonNegativeFloat = Field(default=0.025, description="Rate of Muon's matrices.")
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Momentum of Muon.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Decay of AdamW's moments.")
    epsilon: PositiveFloat = Field(default=1e-8, description="Floor of AdamW's denominator.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="Decoupled decay of matrices; vectors never decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Gradients are scaled down to this norm.")
    max_skipped_in_a_row: PositiveInt = Field(default=3, description="Steps without finite gradients before giving up.")
    schedule: ScheduleSettings = Field(default=ScheduleSettings(), description="Learning rate over steps.")
