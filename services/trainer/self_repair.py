"""Decides whether a run is rolled back, to which checkpoint, and with which learning rate it continues."""

import logging
import time
from collections.abc import Sequence

from services.trainer.checkpoints.checkpoint_store import Checkpoint
from services.trainer.learner.trained_model import TrainingDiverged
from services.trainer.run_checkpoints import RunCheckpoints
from services.trainer.runs.run_events import Rollback
from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.trouble_detector import Trouble, TroubleDetector
from services.trainer.settings import RunConfig

logger = logging.getLogger(__name__)
ADVICE = "resume it with a lower learning rate, or start again"


class SelfRepair:
    """The rollbacks of one run.

    Their number is bounded over the complete run, not over one process: ``open`` is given those of earlier processes,
    which ``metrics.jsonl`` keeps.
    """

    def __init__(self, config: RunConfig, checkpoints: RunCheckpoints) -> None:
        self._config = config
        self._checkpoints = checkpoints
        self._rollbacks: list[Rollback] = []
        self._detector = self._new_detector()

    def _new_detector(self) -> TroubleDetector:
        config = self._config
        return TroubleDetector(config.self_repair, config.update.optim.max_skipped_in_a_row, config.validation.metric)

    @property
    def last(self) -> Rollback | None:
        """The newest rollback; None before the first."""
        return self._rollbacks[-1] if self._rollbacks else None

    @property
    def rate_factor(self) -> float:
        """Factor of all learning rates."""
        return self.last.rate_factor if self.last else 1.0

    @property
    def abandoned_versions(self) -> int:
        """Policy versions that rollbacks left behind: the version of step s is s plus this number."""
        return self.last.policy_version - self.last.to_step if self.last else 0

    def open(self, rollbacks: Sequence[Rollback]) -> None:
        """Continue after these rollbacks."""
        self._rollbacks = list(rollbacks)
        self._checkpoints.rollbacks = len(self._rollbacks)

    def restore(self, lines: Sequence[StepLine]) -> None:
        """Continue with these lines, those of the steps up to the checkpoint."""
        self._detector = self._new_detector()
        self._detector.read(lines)
        self._checkpoints.to_keep = self._detector.to_keep

    def find_trouble(self, lines: Sequence[StepLine]) -> Trouble | None:
        """Read the newest lines; return what requires a rollback, if anything does."""
        trouble = self._detector.read(lines)
        self._checkpoints.to_keep = self._detector.to_keep
        return trouble

    def describe_divergence(self, step: int, error: TrainingDiverged) -> Trouble:
        """Return the trouble of a step whose update gave up."""
        return self._detector.describe_divergence(step, str(error))

    def choose_checkpoint(self, trouble: Trouble) -> Checkpoint:
        """Return the last checkpoint from before the trouble.

        Raises:
            TrainingDiverged: there is none, or the run was rolled back too often.
        """
        limit = self._config.self_repair.rollbacks
        if not limit:
            raise TrainingDiverged(f"at step {trouble.step} {trouble.cause}; {ADVICE}")
        if len(self._rollbacks) >= limit:
            first = self._rollbacks[0]
            raise TrainingDiverged(
                f"at step {trouble.step} {trouble.cause}; the run was rolled back {len(self._rollbacks)} times already "
                f"(self_repair.rollbacks), first at step {first.from_step}: {first.cause}; {ADVICE}"
            )
        checkpoint = self._checkpoints.newest_good(trouble.good)
        if checkpoint is None:
            raise TrainingDiverged(
                f"at step {trouble.step} {trouble.cause}; the run has no checkpoint from before that; {ADVICE}"
            )
        return checkpoint

    def add(self, trouble: Trouble, to_step: int, version: int, abandoned_groups: int) -> Rollback:
        """Return the next rollback, with the rates that follow it.

        Args:
            version: under which the restored weights are published.
            abandoned_groups: groups that were drawn and not given to the learner.
        """
        config, factor = self._config, self.rate_factor * self._config.self_repair.rate_factor
        trained = (trouble.step - to_step) * config.rollouts.groups_per_step
        rollback = Rollback(
            trouble.cause,
            from_step=trouble.step,
            to_step=to_step,
            rate_factor=factor,
            learning_rate=config.update.optim.learning_rate * factor,
            policy_version=version,
            lost_groups=trained + abandoned_groups,
            time=round(time.time(), 3),
        )
        self._rollbacks.append(rollback)
        self._checkpoints.rollbacks = len(self._rollbacks)
        logger.error(
            "rollback %d of at most %d, from step %d to the checkpoint of step %d: %s; the learning rate is now %g",
            len(self._rollbacks), config.self_repair.rollbacks, trouble.step, to_step, trouble.cause,
            rollback.learning_rate,
        )  # fmt: skip
        return rollback
