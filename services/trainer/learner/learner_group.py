"""Holds the models of a run as one group: the trained policy, and a critic and reference policy if needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from searchrl.errors import ConfigurationError
from services.trainer.learner.critic import Critic
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.open_models import open_critic, open_reference
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.scoring import ReferencePolicy


@dataclass(frozen=True, slots=True)
class LearnerGroup:
    """The models that one update works on, or one rank's part of them; used in one thread only."""

    policy: Learner
    critic: Critic | None = None
    reference: ReferencePolicy | None = None

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        settings: LearnerSettings,
        seed: int,
        *,
        has_critic: bool,
        has_reference: bool,
        ranks: Ranks = ALONE,
    ) -> Self:
        """Load every model from one model folder; the critic's head starts at 0.

        Raises:
            searchrl.errors.ConfigurationError: the folder or the device cannot be used.
        """
        policy = Learner.from_folder(folder, settings, seed, ranks)
        # after the policy, which seeds the random generators: a critic's head draws from them before it is set to 0
        critic = open_critic(folder, settings, ranks, seed=seed + 1) if has_critic else None
        reference = None
        if has_reference and settings.adapter.kind == "none":
            reference = open_reference(folder, settings, ranks)
        elif has_reference:
            reference = ReferencePolicy(policy.policy, settings, ranks)
        return cls(policy, critic, reference)

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates of the settings by ``factor`` from now on; it replaces an earlier factor."""
        self.policy.scale_rates(factor)
        if self.critic is not None:
            self.critic.scale_rates(factor)

    def save(self, folder: Path) -> None:
        """Write everything that a bit-exact resume needs."""
        self.policy.save(folder / "learner")
        if self.critic is not None:
            self.critic.save(folder / "critic")

    def save_part(self, folder: Path) -> dict[str, int]:
        """Save this rank's part, and return the size of each file of all ranks that this one sees."""
        self.save(folder)
        self.policy.ranks.wait()
        return _list_files(folder)

    def capture(self) -> None:
        """Copy to main memory what ``save`` would write; it holds one such copy at a time."""
        self.policy.capture()
        if self.critic is not None:
            self.critic.capture()

    def write_captured(self, folder: Path) -> dict[str, int]:
        """Write what ``capture`` copied, in any thread, and return the sizes as ``save_part`` does."""
        self.policy.write_captured(folder / "learner")
        if self.critic is not None:
            self.critic.write_captured(folder / "critic")
        return _list_files(folder)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        if self.critic is not None:
            self.critic.load(folder / "critic")
        self.policy.load(folder / "learner")  # last, because both restore the random generators, and the policy's count


def _list_files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def check_parts(folder: Path, parts: Sequence[Mapping[str, int]]) -> None:
    """Check that the files that each rank saw after a save are here.

    Raises:
        ConfigurationError: a file of a rank did not arrive.
    """
    for rank, files in enumerate(parts):
        for name, size in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise ConfigurationError(
                    f"{name}, which learner rank {rank} wrote, is not complete in {folder}: all ranks need the "
                    "trainer's disk"
                )
