"""Opens the learner of a supervised run: in this process, or sharded over Ray actors."""

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from services.trainer.algorithms.sft import SftLearner
from services.trainer.learner.learner_group import LearnerGroup, check_parts
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.learner_thread import TOKEN_FILE, check_shared_disk
from services.trainer.losses.policy_losses import LossSettings
from services.trainer.sft.settings import SftConfig

if TYPE_CHECKING:
    from services.trainer.learner.ray_ranks import RayRanks

RANKS_FOLDER = "ranks"  # in the run folder, by which ranks show that they see it


class SavedLearner(SftLearner, Protocol):
    """A learner that a run saves, restores and exports."""

    def save(self, folder: Path) -> None:
        """Write everything that a bit-exact resume needs."""
        ...

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Write a model folder."""
        ...

    def close(self) -> None:
        """End the processes of the learner."""
        ...


class LocalLearner:
    """The learner in this process."""

    def __init__(self, group: LearnerGroup) -> None:
        self._group = group

    @property
    def steps(self) -> int:
        return self._group.policy.steps

    def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport:
        return self._group.policy.forward_backward(batch, loss)

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        return self._group.policy.optim_step(settings)

    def save(self, folder: Path) -> None:
        self._group.save(folder)

    def load(self, folder: Path) -> None:
        self._group.load(folder)

    def export(self, folder: Path) -> None:
        self._group.policy.export(folder)

    def close(self) -> None:
        pass


class RankedLearner:
    """The learner sharded over Ray actors, each of which runs the same calls."""

    def __init__(self, actors: "RayRanks") -> None:
        self._actors = actors
        self.steps = 0

    @classmethod
    def start(cls, config: SftConfig) -> Self:
        """Start the ranks, and load each one's part of the model.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used, or a rank has another disk.
            searchrl.errors.Unavailable: the ranks could not be started.
        """
        from services.trainer.learner.ray_ranks import RayRanks  # Ray takes seconds to import

        # an actor's working directory may be another one
        config = config.model_copy(update={"model": config.model.resolve(), "output": config.output.resolve()})
        folder, token = config.output / RANKS_FOLDER, uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKEN_FILE).write_text(token)

        def build(ranks: Ranks) -> LearnerGroup:
            check_shared_disk(folder / TOKEN_FILE, token, ranks)
            return _load(config, ranks)

        try:
            return cls(RayRanks.start(config.learner, build))
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # every rank has looked

    def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport:
        return self._actors.run(_forward_backward, batch, loss)[0]

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        report: OptimReport = self._actors.run(_optim_step, settings)[0]
        self.steps = report.step
        return report

    def save(self, folder: Path) -> None:
        folder = folder.resolve()
        check_parts(folder, self._actors.run(LearnerGroup.save_part, folder))

    def load(self, folder: Path) -> None:
        self._actors.run(LearnerGroup.load, folder.resolve())
        self.steps = self._actors.run(_count_steps)[0]

    def export(self, folder: Path) -> None:
        self._actors.run(_export, folder.resolve())

    def close(self) -> None:
        self._actors.close()


def open_learner(config: SftConfig) -> SavedLearner:
    """Load the model in this process, or over Ray actors if there are ranks.

    Raises:
        searchrl.errors.ConfigurationError: the folder or the device cannot be used.
    """
    return RankedLearner.start(config) if config.learner.ranks else LocalLearner(_load(config, ALONE))


def _load(config: SftConfig, ranks: Ranks) -> LearnerGroup:
    return LearnerGroup.from_folder(
        config.model, config.learner, config.seed, has_critic=False, has_reference=False, ranks=ranks
    )


# What a rank does with its part of the model.
def _forward_backward(group: LearnerGroup, batch: TrainBatch, loss: LossSettings) -> LossReport:
    return group.policy.forward_backward(batch, loss)


def _optim_step(group: LearnerGroup, settings: OptimSettings) -> OptimReport:
    return group.policy.optim_step(settings)


def _count_steps(group: LearnerGroup) -> int:
    return group.policy.steps


def _export(group: LearnerGroup, folder: Path) -> None:
    group.policy.export(folder)
