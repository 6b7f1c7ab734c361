"""Builds the reward function that the settings name."""

from collections.abc import Sequence

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.rewards.baseline_cache import BaselineCache
from searchrl.rewards.gain_beyond_rag import RolloutReward
from services.trainer.rewards.reward_kinds import (
    ExactMatchReward,
    GenerationReward,
    RewardFunction,
    SearchR1FormatReward,
)
from services.trainer.rewards.reward_settings import RewardSettings

HOW_TO_REBUILD = "build it again from the run's questions (python -m services.evaluator.commands.build_baseline --help)"


def needs_generator(settings: RewardSettings) -> bool:
    """Whether this reward calls the generator service."""
    return settings.kind in ("generation_accuracy", "gain_beyond_rag")


def build_reward(
    settings: RewardSettings, generator: GeneratorClient | None, questions: Sequence[Question]
) -> RewardFunction:
    """Build the reward function.

    Raises:
        ConfigurationError: it needs a generator and there is none, or the baselines are not of these questions.
    """
    if settings.kind == "exact_match":
        return ExactMatchReward()
    if settings.kind == "search_r1_format":
        return SearchR1FormatReward()
    if generator is None:
        raise ConfigurationError(f"reward kind {settings.kind} needs services.generator, the address of a generator")
    compares = settings.kind == "gain_beyond_rag"
    cost = RolloutReward(
        mode=settings.gain_mode if compares else "generation",
        document_cost=settings.document_cost,
        search_cost=settings.search_cost,
        malformed_penalty=settings.malformed_penalty,
    )
    return GenerationReward(generator, cost, read_baseline(settings, questions))


def read_baseline(settings: RewardSettings, questions: Sequence[Question]) -> BaselineCache | None:
    """Read naive RAG's results; None if the reward does not compare with them.

    Raises:
        ConfigurationError: the file cannot be used, lacks a question, or is of questions that have changed since.
    """
    if settings.baseline_file is None:
        return None
    try:
        baseline = BaselineCache.load(settings.baseline_file)
        baseline.require_questions(questions)
    except ServiceError as error:
        raise ConfigurationError(f"reward.baseline_file: {error}; {HOW_TO_REBUILD}") from error
    return baseline
