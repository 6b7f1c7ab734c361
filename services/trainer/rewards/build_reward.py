"""Which reward function do the settings name?"""

from searchrl.errors import ConfigurationError
from searchrl.rewards.rollout_reward import RolloutReward
from services.trainer.rewards.baseline_file import read_baseline
from services.trainer.rewards.reward_kinds import (
    ExactMatchReward,
    GenerationReward,
    Generator,
    RewardFunction,
    SearchR1FormatReward,
)
from services.trainer.rewards.reward_settings import RewardSettings


def needs_generator(settings: RewardSettings) -> bool:
    """Does this reward call the generator service?"""
    return settings.kind in ("generation_accuracy", "gain_beyond_rag")


def build_reward(settings: RewardSettings, generator: Generator | None) -> RewardFunction:
    """Build the function.

    Raises:
        ConfigurationError: it needs a generator and there is none, or the baseline file cannot be used.
    """
    if settings.kind == "exact_match":
        return ExactMatchReward()
    if settings.kind == "search_r1_format":
        return SearchR1FormatReward()
    if generator is None:
        raise ConfigurationError(f"reward kind {settings.kind} needs services.generator, the address of a generator")
    compares = settings.kind == "gain_beyond_rag"
    price = RolloutReward(
        mode=settings.gain_mode if compares else "generation",
        document_cost=settings.document_cost,
        search_cost=settings.search_cost,
        malformed_penalty=settings.malformed_penalty,
    )
    baseline = read_baseline(settings.baseline_file) if settings.baseline_file is not None else None
    return GenerationReward(generator, price, baseline)
