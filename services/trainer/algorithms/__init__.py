"""The reinforcement-learning algorithms by name, and supervised training; one file each, with its settings."""

from collections.abc import Mapping
from typing import Any

from services.trainer.algorithms.base import Algorithm, AlgorithmBase
from services.trainer.algorithms.grpo import Grpo, GrpoSettings
from services.trainer.algorithms.ppo import Ppo, PpoSettings
from services.trainer.algorithms.reinforce import Reinforce, ReinforceSettings

AlgorithmSettings = GrpoSettings | PpoSettings | ReinforceSettings
ALGORITHMS: Mapping[str, tuple[type[Algorithm[Any]], type[AlgorithmBase]]] = {
    "grpo": (Grpo, GrpoSettings),
    "ppo": (Ppo, PpoSettings),
    "reinforce": (Reinforce, ReinforceSettings),
}
"""Class and settings by ``algorithm.kind``."""
