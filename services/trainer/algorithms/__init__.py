"""The reinforcement-learning algorithms by name, and supervised training; a file for each family, with its settings."""

from collections.abc import Mapping
from typing import Any

from services.trainer.algorithms.base import Algorithm, AlgorithmBase
from services.trainer.algorithms.grpo import (
    Cispo,
    CispoSettings,
    Dapo,
    DapoSettings,
    DrGrpo,
    DrGrpoSettings,
    Grpo,
    GrpoSettings,
    Gspo,
    GspoSettings,
)
from services.trainer.algorithms.ppo import Ppo, PpoSettings
from services.trainer.algorithms.reinforce import Reinforce, ReinforceSettings, Rloo, RlooSettings
from services.trainer.algorithms.reinforce_plus_plus import (
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReinforcePlusPlusBaselineSettings,
    ReinforcePlusPlusSettings,
)

AlgorithmSettings = (
    GrpoSettings
    | DapoSettings
    | DrGrpoSettings
    | GspoSettings
    | CispoSettings
    | PpoSettings
    | ReinforceSettings
    | RlooSettings
    | ReinforcePlusPlusSettings
    | ReinforcePlusPlusBaselineSettings
)
ALGORITHMS: Mapping[str, tuple[type[Algorithm[Any]], type[AlgorithmBase]]] = {
    "grpo": (Grpo, GrpoSettings),
    "dapo": (Dapo, DapoSettings),
    "dr_grpo": (DrGrpo, DrGrpoSettings),
    "gspo": (Gspo, GspoSettings),
    "cispo": (Cispo, CispoSettings),
    "ppo": (Ppo, PpoSettings),
    "reinforce": (Reinforce, ReinforceSettings),
    "rloo": (Rloo, RlooSettings),
    "reinforce_plus_plus": (ReinforcePlusPlus, ReinforcePlusPlusSettings),
    "reinforce_plus_plus_baseline": (ReinforcePlusPlusBaseline, ReinforcePlusPlusBaselineSettings),
}
"""Class and settings by ``algorithm.kind``."""
