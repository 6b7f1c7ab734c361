"""Holds the models of a run as one group: the trained policy, and a critic and reference policy if needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from services.trainer.learner.critic import Critic
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.scoring import ReferencePolicy

if TYPE_CHECKING:
    from services.trainer.learner.ray_learner import RayLearner


@dataclass(frozen=True, slots=True)
class LearnerGroup:
    """The models that one update works on; used in one thread only."""

    policy: "Learner | RayLearner"
    critic: Critic | None = None
    reference: ReferencePolicy | None = None

    @classmethod
    def from_folder(
        cls, folder: Path, settings: LearnerSettings, seed: int, *, has_critic: bool, has_reference: bool
    ) -> Self:
        """Load every model from one model folder; the critic's head starts at 0.

        Raises:
            searchrl.errors.ConfigurationError: the folder or the device cannot be used.
        """
        # also done by ``Learner``, but not in this process if the policy runs in Ray actors
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        policy = _open_policy(folder, settings, seed)
        # after the policy, which seeds the random generators: a critic's head draws from them before it is set to 0
        critic = Critic.from_folder(folder, settings) if has_critic else None
        reference = ReferencePolicy.from_folder(folder, settings) if has_reference else None
        return cls(policy, critic, reference)

    def save(self, folder: Path) -> None:
        """Write everything that a bit-exact resume needs."""
        self.policy.save(folder / "learner")
        if self.critic is not None:
            self.critic.save(folder / "critic")

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        if self.critic is not None:
            self.critic.load(folder / "critic")
        self.policy.load(folder / "learner")  # last, because both restore the random generators, and the policy's count

    def close(self) -> None:
        """End the policy's other processes, if it has any."""
        if not isinstance(self.policy, Learner):
            self.policy.close()


def _open_policy(folder: Path, settings: LearnerSettings, seed: int) -> "Learner | RayLearner":
    if not settings.ranks:
        return Learner.from_folder(folder, settings, seed)
    from services.trainer.learner.ray_learner import RayLearner  # Ray takes seconds to import

    gpus = 1 if settings.device.startswith("cuda") else 0
    return RayLearner.start(folder, settings, seed, ranks=settings.ranks, gpus_per_rank=gpus)
