"""Rewards by name, each a class with its settings."""

from collections.abc import Mapping
from typing import Any

from services.trainer.rewards.answers import (
    ExactMatchReward,
    ExactMatchSettings,
    SearchR1FormatReward,
    SearchR1FormatSettings,
)
from services.trainer.rewards.base import RewardBase, RewardFunction
from services.trainer.rewards.generation import (
    GainBeyondRagReward,
    GainBeyondRagSettings,
    GenerationAccuracyReward,
    GenerationAccuracySettings,
)
from services.trainer.rewards.imported import ImportedReward, ImportedSettings
from services.trainer.rewards.weighted_sum import WeightedSumReward, WeightedSumSettings

RewardSettings = (
    GenerationAccuracySettings
    | GainBeyondRagSettings
    | ExactMatchSettings
    | SearchR1FormatSettings
    | ImportedSettings
    | WeightedSumSettings
)
REWARDS: Mapping[str, tuple[type[RewardFunction[Any]], type[RewardBase]]] = {
    "generation_accuracy": (GenerationAccuracyReward, GenerationAccuracySettings),
    "gain_beyond_rag": (GainBeyondRagReward, GainBeyondRagSettings),
    "exact_match": (ExactMatchReward, ExactMatchSettings),
    "search_r1_format": (SearchR1FormatReward, SearchR1FormatSettings),
    "imported": (ImportedReward, ImportedSettings),
    "weighted_sum": (WeightedSumReward, WeightedSumSettings),
}
"""Class and settings by ``reward.kind``."""
