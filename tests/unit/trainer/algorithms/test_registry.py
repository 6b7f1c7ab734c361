"""The algorithms by name: published defaults, and the models that each needs."""

import pytest

from searchrl.agent.types import Limits
from services.trainer.algorithms import ALGORITHMS
from services.trainer.algorithms.base import UpdateSettings
from services.trainer.algorithms.grpo import (
    CispoSettings,
    DapoSettings,
    DrGrpo,
    DrGrpoLoss,
    DrGrpoSettings,
    GrpoLoss,
    GrpoSettings,
    GspoSettings,
)
from services.trainer.algorithms.ppo import PpoLoss, PpoSettings
from services.trainer.algorithms.reinforce import ReinforceLoss, ReinforceSettings, RlooSettings
from services.trainer.algorithms.reinforce_plus_plus import (
    ReinforcePlusPlusBaselineSettings,
    ReinforcePlusPlusSettings,
)
from services.trainer.losses.advantages import GaeSettings


def test_the_defaults_of_grpo_are_those_of_dapo() -> None:
    settings = GrpoSettings()
    assert (settings.advantage, settings.scale, settings.drop_zero_variance) == ("group_std", 1.0, True)
    assert settings.loss.clip_range == pytest.approx((0.8, 1.28))
    assert (settings.loss.reduction, settings.loss.kl_coefficient) == ("token_mean", 0.0)


def test_the_defaults_of_dapo_are_those_of_grpo_with_dynamic_sampling() -> None:
    settings = DapoSettings()
    assert (settings.loss, settings.advantage) == (GrpoSettings().loss, "group_std")
    assert (settings.sample_batches, GrpoSettings().sample_batches) == (10, 1)


def test_the_defaults_of_dr_grpo_divide_by_no_deviation_and_no_length() -> None:
    settings = DrGrpoSettings()
    assert (settings.advantage, settings.drop_zero_variance) == ("mean_baseline", False)
    assert settings.loss.clip_range == pytest.approx((0.8, 1.2)) and not settings.needs_reference
    assert settings.loss.reduction == "seq_sum_const"


def test_the_constant_of_dr_grpo_is_the_most_that_a_rollout_may_sample_unless_it_is_given() -> None:
    # three searches and a last turn of 500 tokens each; a context of 1200 allows no more than that
    limits = (Limits(), Limits(max_context_tokens=1200))
    found = [DrGrpo(DrGrpoSettings(), UpdateSettings(), one.max_sampled_tokens).loss for one in limits]
    assert [loss.aggregation_constant for loss in found] == [2000, 1200]
    given = DrGrpoSettings(loss=DrGrpoLoss(aggregation_constant=64.0))
    assert DrGrpo(given, UpdateSettings(), 2000).loss.aggregation_constant == 64.0


def test_the_defaults_of_gspo_are_its_bounds_and_a_mean_per_rollout() -> None:
    settings = GspoSettings()
    assert (settings.advantage, settings.drop_zero_variance) == ("group_std", False)
    assert settings.loss.clip_range == pytest.approx((1 - 3e-4, 1 + 4e-4))
    assert (settings.loss.policy, settings.loss.reduction) == ("gspo", "seq_mean_token_mean")


def test_the_defaults_of_cispo_bound_a_weight_above_only() -> None:
    settings = CispoSettings()
    assert settings.loss.clip_range == (0.0, 5.0)
    assert (settings.loss.policy, settings.loss.reduction) == ("cispo", "token_mean")


def test_the_defaults_of_ppo_are_its_clip_and_undiscounted_returns() -> None:
    settings = PpoSettings()
    assert settings.loss.clip_range == pytest.approx((0.8, 1.2))
    assert (settings.gae.gamma, settings.gae.gae_lambda) == (1.0, 1.0)


def test_reinforce_has_the_baseline_of_rloo_without_its_kl() -> None:
    settings = ReinforceSettings()
    assert settings.advantage == "leave_one_out"
    assert (settings.loss.policy, settings.loss.reduction) == ("reinforce", "seq_mean_token_sum")
    assert not settings.needs_reference


def test_the_defaults_of_rloo_have_the_kl_in_the_reward() -> None:
    settings = RlooSettings()
    assert (settings.reward_kl_coefficient, settings.loss.kl_coefficient) == (0.05, 0.0)
    assert (settings.loss.policy, settings.loss.reduction) == ("reinforce", "seq_mean_token_sum")
    assert settings.needs_reference and settings.compares_rollouts


def test_the_defaults_of_reinforce_plus_plus_are_a_clip_and_a_kl_in_the_reward_or_the_loss() -> None:
    plain, baseline = ReinforcePlusPlusSettings(), ReinforcePlusPlusBaselineSettings()
    for settings in (plain, baseline):
        assert settings.loss.clip_range == pytest.approx((0.8, 1.2))
        assert settings.loss.reduction == "token_mean" and settings.needs_reference
    assert (plain.gamma, plain.reward_kl_coefficient, plain.loss.kl_coefficient) == (1.0, 1e-4, 0.0)
    assert (baseline.loss.kl_coefficient, baseline.loss.kl_estimator) == (1e-5, "k2")
    assert (plain.compares_rollouts, baseline.compares_rollouts) == (False, True)


def test_only_ppo_needs_a_critic_and_only_a_kl_term_needs_a_reference() -> None:
    plain = (GrpoSettings(), PpoSettings(), ReinforceSettings())
    assert [settings.needs_critic for settings in plain] == [False, True, False]
    assert not any(settings.needs_reference for settings in plain)
    with_kl = (
        GrpoSettings(loss=GrpoLoss(kl_coefficient=0.1)),
        PpoSettings(loss=PpoLoss(kl_coefficient=0.1)),
        PpoSettings(gae=GaeSettings(kl_coefficient=0.1)),
        ReinforceSettings(loss=ReinforceLoss(kl_coefficient=0.1)),
    )
    assert all(settings.needs_reference for settings in with_kl)


def test_the_registry_names_each_algorithm_by_the_kind_of_its_settings() -> None:
    for kind, (_, settings) in ALGORITHMS.items():
        assert settings.model_fields["kind"].default == kind
