"""Token losses against values and gradients computed manually: PPO, dual clip, GSPO, CISPO and REINFORCE.

Weights carry no gradient, masked positions reach nothing, huge log-ratios stay finite, and the mismatch between sampler
and learner is visible.
"""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from services.trainer.losses.policy_losses import (
    LossSettings,
    PolicyTokens,
    ValueLossSettings,
    llds_losses,
    row_means,
    token_losses,
    value_losses,
)


def tokens_of(
    logprobs: list[float], behavior: list[float], advantages: list[float], rows: list[int] | None = None, **more
) -> PolicyTokens:
    """Tokens of a batch, by default all of one row and with the sampler as old policy."""
    index = torch.tensor(rows or [0] * len(logprobs))
    old = torch.tensor(behavior)
    given = {"old_logprobs": old, "actions": torch.zeros(len(logprobs), dtype=torch.long)} | more
    return PolicyTokens(
        logprobs=torch.tensor(logprobs, requires_grad=True),
        behavior_logprobs=old,
        advantages=torch.tensor(advantages),
        rows=index,
        row_count=int(index.max()) + 1,
        **given,
    )


def loss_and_gradient(ratio: float, advantage: float, **settings: object) -> tuple[float, float]:
    """The loss of one token with this ratio, and its derivative with respect to the log-probability."""
    tokens = tokens_of([math.log(ratio) - 1.0], [-1.0], [advantage])
    losses, _ = token_losses(tokens, LossSettings.model_validate(settings))
    losses.sum().backward()
    assert tokens.logprobs.grad is not None
    return float(losses.detach()), float(tokens.logprobs.grad)


CLIP = {"clip_low": 0.2, "clip_high": 0.28}
# d loss / d logprob = -A * ratio where the ratio is free, 0 where it is clipped
PPO_TABLE = [
    (0.5, 1.0, -0.5, -0.5),
    (1.0, 1.0, -1.0, -1.0),
    (1.5, 1.0, -1.28, 0.0),
    (0.5, -1.0, 0.8, 0.0),
    (1.0, -1.0, 1.0, 1.0),
    (1.5, -1.0, 1.5, 1.5),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), PPO_TABLE)
def test_ppo_clips_low_and_high_asymmetrically(ratio, advantage, loss, gradient) -> None:
    assert loss_and_gradient(ratio, advantage, policy="ppo", **CLIP) == pytest.approx((loss, gradient), abs=1e-6)


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), PPO_TABLE)
def test_gspo_of_a_single_token_is_ppo(ratio, advantage, loss, gradient) -> None:
    assert loss_and_gradient(ratio, advantage, policy="gspo", **CLIP) == pytest.approx((loss, gradient), abs=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_tokens_only() -> None:
    # A = -1, ratio 5 > dual_clip 3: loss 3, no gradient; ratio 2 is below the bound and stays free
    assert loss_and_gradient(5.0, -1.0, dual_clip=3.0, **CLIP) == pytest.approx((3.0, 0.0), abs=1e-6)
    assert loss_and_gradient(2.0, -1.0, dual_clip=3.0, **CLIP) == pytest.approx((2.0, 2.0), abs=1e-6)
    assert loss_and_gradient(5.0, 1.0, dual_clip=3.0, **CLIP) == pytest.approx((-1.28, 0.0), abs=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_cispo_keeps_every_gradient_and_detaches_its_weight(ratio, advantage) -> None:
    weight = min(max(ratio, 0.8), 1.28)
    loss, gradient = loss_and_gradient(ratio, advantage, policy="cispo", **CLIP)
    # were the weight not detached, the gradient would have a second term
    assert gradient == pytest.approx(-weight * advantage, abs=1e-6)
    assert loss == pytest.approx(-weight * advantage * (math.log(ratio) - 1.0), abs=1e-6)


def test_reinforce_weighs_by_the_capped_detached_ratio() -> None:
    assert loss_and_gradient(3.0, 1.0, policy="reinforce", importance_ratio_cap=2.0)[1] == pytest.approx(-2.0)
    assert loss_and_gradient(0.5, 1.0, policy="reinforce", importance_ratio_cap=2.0)[1] == pytest.approx(-0.5)
    assert loss_and_gradient(3.0, 1.0, policy="reinforce")[1] == pytest.approx(-2.0)  # the default cap is 2
    assert loss_and_gradient(3.0, 1.0, policy="reinforce", importance_ratio_cap=math.inf)[1] == pytest.approx(-3.0)


def test_gspo_ratio_is_the_geometric_mean_of_the_row() -> None:
    # row 0: log-ratios .2 and .4, mean .3 -> ratio 1.35, clipped at 1.28; row 1: -.1 -> .905, free
    tokens = tokens_of([-0.8, -0.6, -1.1], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], rows=[0, 0, 1])
    losses, sums = token_losses(tokens, LossSettings(policy="gspo", clip_high=0.28))
    assert losses.tolist() == pytest.approx([-1.28, -1.28, -math.exp(-0.1)])
    assert sums["clipped"] == 2.0
    losses.sum().backward()
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.tolist() == pytest.approx([0.0, 0.0, -math.exp(-0.1)])


def test_decoupled_ratio_is_against_the_proximal_policy_and_weighted_by_it() -> None:
    # logprob -1.0, proximal -1.1, sampler -2.1: ratio e^.1, weight min(e^1, 2) = 2
    tokens = tokens_of([-1.0], [-2.1], [1.0], old_logprobs=torch.tensor([-1.1]))
    losses, _ = token_losses(tokens, LossSettings(old_policy="proximal"))
    assert losses.tolist() == pytest.approx([-2.0 * math.exp(0.1)])


@pytest.mark.parametrize("policy", ["ppo", "gspo", "cispo", "reinforce"])
@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
def test_a_log_ratio_of_a_thousand_gives_a_finite_loss_and_gradient(policy, log_ratio: float) -> None:
    tokens = tokens_of([log_ratio], [0.0], [-1.0])
    losses, sums = token_losses(tokens, LossSettings(policy=policy, importance_ratio_cap=2.0))
    losses.sum().backward()
    assert torch.isfinite(losses).all() and tokens.logprobs.grad is not None
    assert torch.isfinite(tokens.logprobs.grad).all()
    if policy != "reinforce":
        assert sums["clamped"] == 1.0


def test_drift_per_token_does_not_grow_with_length_in_the_sequence_mask() -> None:
    # 0.012 per token: the product over 100 tokens is e^1.2 = 3.3, the geometric mean e^0.012 = 1.012
    def masked(drift: float) -> float:
        tokens = tokens_of([-1.0 + drift] * 100, [-1.0] * 100, [1.0] * 100)
        return token_losses(tokens, LossSettings(sequence_ratio_low=0.98, sequence_ratio_high=1.02))[1]["masked"]

    assert masked(0.012) == 0.0
    assert masked(0.03) == 100.0
    assert masked(-0.03) == 100.0


@pytest.mark.parametrize("policy", ["ppo", "gspo", "cispo", "reinforce"])
@pytest.mark.parametrize("old_policy", ["behavior", "proximal"])
def test_tokens_of_the_sampler_itself_are_not_corrected(policy, old_policy) -> None:
    """As in a synchronous run before its first optimizer step: losses and gradients are equal to the bit."""

    def loss_and_gradient_of(**bounds) -> tuple[list[float], list[float]]:
        tokens = tokens_of([-1.25, -0.3, -2.7], [-1.25, -0.3, -2.7], [1.5, -0.7, 0.2], rows=[0, 0, 1])
        losses, _ = token_losses(tokens, LossSettings(policy=policy, old_policy=old_policy, **bounds))
        losses.sum().backward()
        assert tokens.logprobs.grad is not None
        return losses.tolist(), tokens.logprobs.grad.tolist()

    uncorrected = loss_and_gradient_of(importance_ratio_cap=math.inf, sequence_ratio_low=0.0, sequence_ratio_high=None)
    assert loss_and_gradient_of() == uncorrected


def test_by_default_a_row_of_another_policy_is_masked_and_a_token_is_capped() -> None:
    # row 0: 2.5 nats per token, a ratio of 12, is out of bounds; row 1: 1 nat, a weight of 2.7, is capped at 2
    tokens = tokens_of([-0.5, -0.5, -0.5], [-3.0, -3.0, -1.5], [1.0] * 3, rows=[0, 0, 1])
    losses, sums = token_losses(tokens, LossSettings(policy="reinforce"))
    assert losses.tolist() == pytest.approx([0.0, 0.0, 2.0 * 0.5])
    assert (sums["masked"], sums["capped"]) == (2.0, 3.0)


def test_share_of_capped_token_weights_matches_the_closed_form() -> None:
    drift = torch.linspace(-1, 1, 2001)
    tokens = tokens_of([-1.0] * 2001, (-1.0 - drift).tolist(), [1.0] * 2001)
    losses, _ = token_losses(tokens, LossSettings(policy="reinforce", importance_ratio_cap=2.0))
    # weights e^u for u uniform on [-1, 1], capped at 2: mean (2 - e^-1 + 2 (1 - ln 2)) / 2
    assert float(losses.detach().mean()) == pytest.approx((2 - math.exp(-1) + 2 * (1 - math.log(2))) / 2, abs=1e-3)


def test_mismatch_is_zero_for_the_sampler_itself_and_visible_with_noise() -> None:
    exact = token_losses(tokens_of([-1.0, -2.0], [-1.0, -2.0], [1.0, 1.0]), LossSettings())[1]
    noisy = token_losses(tokens_of([-1.0, -2.0], [-1.3, -1.6], [1.0, 1.0]), LossSettings())[1]
    assert exact["mismatch_kl"] < 1e-6 and exact["ratio"] == 2.0
    assert noisy["mismatch_kl"] > 0.1 and noisy["ratio"] != pytest.approx(2.0)


def test_the_logprob_drop_counts_only_tokens_with_positive_advantage() -> None:
    sums = token_losses(tokens_of([-1.0, -2.0], [-0.5, -1.0], [1.0, -1.0]), LossSettings())[1]
    assert (sums["good_tokens"], sums["logprob_drop"]) == (1.0, 0.5)


def test_kl_and_entropy_terms_are_added_with_their_coefficients() -> None:
    extra: dict[str, Any] = {"reference_logprobs": torch.tensor([-1.5]), "entropy": torch.tensor([0.7])}
    tokens = tokens_of([-1.0], [-1.0], [1.0], **extra)
    losses, sums = token_losses(tokens, LossSettings(kl_coefficient=0.1, entropy_coefficient=0.01))
    # ppo -1, k2 = .5 * .5^2, entropy bonus .7
    assert losses.tolist() == pytest.approx([-1.0 + 0.1 * 0.125 - 0.01 * 0.7])
    assert sums["entropy"] == pytest.approx(0.7)


def test_missing_inputs_of_a_term_are_an_error() -> None:
    with pytest.raises(ValueError, match="reference"):
        token_losses(tokens_of([-1.0], [-1.0], [1.0]), LossSettings(kl_coefficient=0.1))
    with pytest.raises(ValueError, match="entropy"):
        token_losses(tokens_of([-1.0], [-1.0], [1.0]), LossSettings(entropy_coefficient=0.1))


def test_cross_entropy_reads_advantages_as_weights() -> None:
    losses, _ = token_losses(tokens_of([-1.0, -2.0], [0.0, 0.0], [0.5, 1.0]), LossSettings(policy="cross_entropy"))
    assert losses.tolist() == pytest.approx([0.5, 2.0])


def test_gspo_clips_and_averages_as_its_paper_unless_told_otherwise() -> None:
    """The mean ratio of a sequence hardly moves: the clip range of single tokens would never clip it."""
    gspo, ppo = LossSettings(policy="gspo"), LossSettings()
    assert gspo.clip_range == pytest.approx((1 - 3e-4, 1 + 4e-4))
    assert ppo.clip_range == pytest.approx((0.8, 1.28))
    assert (gspo.reduction, ppo.reduction) == ("seq_mean_token_mean", "token_mean")
    assert LossSettings(policy="gspo", clip_low=0.0, aggregation="token_mean").clip_range[0] == 1.0
    assert LossSettings(policy="gspo", aggregation="token_mean").reduction == "token_mean"
    assert loss_and_gradient(1.001, 1.0, policy="gspo") == pytest.approx((-1.0004, 0.0), abs=1e-6)
    assert loss_and_gradient(1.001, 1.0, policy="ppo") == pytest.approx((-1.001, -1.001), abs=1e-6)


def test_settings_refuse_unknown_keys_and_a_missing_constant() -> None:
    with pytest.raises(ValidationError, match="aggregation_constant"):
        LossSettings(aggregation="seq_sum_const")
    with pytest.raises(ValidationError, match="clip_lo"):
        LossSettings.model_validate({"clip_lo": 0.2})


def test_means_of_rows_stay_on_the_device_of_their_tokens() -> None:
    """The meta device refuses tensors of another device, as a GPU does."""
    values, index = torch.zeros(3, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    assert row_means(values, index, 2).device.type == "meta"


OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0])
ACTIONS = torch.tensor([0, 0, 1, 1])


def penalty(logprobs: list[float], advantages: list[float], threshold: float = 0.0) -> list[float]:
    return llds_losses(torch.tensor(logprobs), OLD, torch.tensor(advantages), ACTIONS, threshold).tolist()


def test_only_dropped_tokens_of_dropped_actions_are_penalized() -> None:
    # action 0 fell by .5 in sum (one token rose), action 1 rose in sum although its first token fell
    assert penalty([-1.7, -0.8, -1.1, -0.5], [1.0] * 4) == pytest.approx([0.7, 0.0, 0.0, 0.0])


def test_bad_actions_may_fall_freely_and_neutral_ones_may_not() -> None:
    assert penalty([-2.0, -2.0, -2.0, -2.0], [-1.0, -1.0, 0.0, 0.0]) == pytest.approx([0.0, 0.0, 1.0, 1.0])


def test_a_fall_within_the_threshold_is_free() -> None:
    assert penalty([-1.2, -1.2, -1.6, -1.6], [1.0] * 4, threshold=0.5) == pytest.approx([0.0, 0.0, 0.6, 0.6])


def test_the_gradient_pushes_fallen_tokens_up_and_touches_no_others() -> None:
    logprobs = torch.tensor([-2.0, -0.5, -0.5, -0.5], requires_grad=True)
    llds_losses(logprobs, OLD, torch.ones(4), ACTIONS).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, 0.0, 0.0, 0.0]


def test_no_tokens_give_no_losses() -> None:
    empty = torch.zeros(0)
    assert llds_losses(empty, empty, empty, torch.zeros(0, dtype=torch.long)).shape == (0,)


def losses(values: list[float], clip: float | None) -> list[float]:
    settings = ValueLossSettings(clip=clip, coefficient=0.5)
    return value_losses(torch.tensor(values), torch.zeros(len(values)), torch.ones(len(values)), settings)[0].tolist()


def test_without_a_clip_the_loss_is_half_the_squared_error() -> None:
    assert losses([0.0, 0.5, 1.0], None) == pytest.approx([0.5, 0.125, 0.0])


def test_moving_past_the_clip_towards_the_return_earns_nothing_more() -> None:
    # old value 0, return 1, clip .2: at .5 the trusted value is .2, error .8^2
    assert losses([0.1, 0.5], 0.2) == pytest.approx([0.5 * 0.9**2, 0.5 * 0.8**2])


def test_moving_away_is_never_protected_by_the_clip() -> None:
    assert losses([-0.5], 0.2) == pytest.approx([0.5 * 1.5**2])
