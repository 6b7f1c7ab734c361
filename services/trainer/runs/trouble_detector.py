"""Detects from the lines of a run that its policy diverges or collapses, and since which step.

Two signs are read from each line:

* not finite: a gradient or the loss of the step was NaN or infinite. The optimizer skips such a step, so the weights
  stay finite, but weights that produce such gradients may be on their way out of the range in which they work.
* collapse: the reward has lost a share of its best mean and stays there, or the policy is deterministic (entropy 0) at
  the lowest reward of the run. If the run is validated, the validations decide instead of the training rewards.

Example of the first for steps 1 to 5, where n is a step that is not finite:  1 2 3 4n 5n. The weights of step 3 gave
the first bad gradients, those of step 2 gave good ones, so the run returns to the checkpoint of step 2, or to that of
step 3 if there is no other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.step_report import read_number
from services.trainer.runs.step_summary import CollapseDetector
from services.trainer.settings import SelfRepairSettings
from services.trainer.validation.history import PREFIX, is_validation

ZERO_ENTROPY = 1e-4
"""Nats per token; the least that a policy keeps which still samples different rollouts is more than ten times that."""


@dataclass(frozen=True, slots=True)
class GoodSteps:
    """Which weights are good: those of ``surely`` and of earlier steps; up to ``probably`` nothing is known against."""

    surely: int
    probably: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a run must return to an earlier checkpoint, noticed at ``step``."""

    cause: str
    step: int
    good: GoodSteps


class TroubleDetector:
    """Reads the lines of a run as they are added.

    Args:
        nonfinite_steps: training steps in a row whose loss is not finite, after which the run has diverged.
        metric: of the validations.
    """

    def __init__(self, settings: SelfRepairSettings, nonfinite_steps: int, metric: str) -> None:
        self._settings = settings
        self._nonfinite_steps = nonfinite_steps
        self._metric = f"{PREFIX}{metric}"
        self._read = 0  # lines
        self._bad_since: int | None = None  # first of the steps in a row that are not finite
        self._nonfinite_losses = 0
        self._rewards = CollapseDetector(settings.collapse_window, 1.0 - settings.collapse_drop)
        self._best_step = 0  # last step of the window with the best mean, or that of the best validation
        self._low_steps = self._stuck_steps = 0
        self._lowest = math.inf
        self._validations: list[float] = []
        self._low_validation_since: int | None = None

    def read(self, lines: Sequence[StepLine]) -> Trouble | None:
        """Read the lines that were added since the last call; return the trouble that the newest of them shows."""
        trouble = None
        for line in lines[self._read :]:
            trouble = None
            if is_validation(line):
                self._read_validation(line)
            else:
                trouble = self._read_step(line)
        self._read = len(lines)
        return trouble

    def describe_divergence(self, step: int, cause: str) -> Trouble:
        """Return the trouble of a step whose update gave up."""
        self._bad_since = step if self._bad_since is None else self._bad_since
        return Trouble(cause, step, self._good_before(self._bad_since))

    @property
    def to_keep(self) -> list[GoodSteps]:
        """What the run may have to return to: these checkpoints must stay."""
        kept = [] if self._bad_since is None else [self._good_before(self._bad_since)]
        return [*kept, GoodSteps(self._best_step, self._best_step)] if self._settings.collapse_steps else kept

    def _good_before(self, step: int) -> GoodSteps:
        # The weights of step - 1 were the first that gave bad gradients.
        return GoodSteps(step - 2, step - 1)

    def _read_step(self, line: StepLine) -> Trouble | None:
        step = int(read_number(line, "step"))
        is_loss_finite = math.isfinite(read_number(line, "loss"))
        self._nonfinite_losses = 0 if is_loss_finite else self._nonfinite_losses + 1
        if is_loss_finite and not read_number(line, "skipped_steps") and not read_number(line, "value_skipped_steps"):
            self._bad_since = None
        elif self._bad_since is None:
            self._bad_since = step
        if self._nonfinite_losses >= self._nonfinite_steps:
            return self.describe_divergence(step, f"the loss was not finite {self._nonfinite_losses} steps in a row")
        return self._find_collapse(line, step)

    def _find_collapse(self, line: StepLine, step: int) -> Trouble | None:
        limit = self._settings.collapse_steps
        if not limit or "reward" not in line:  # no rollout of the step was scored: nothing is known about the policy
            return None
        reward, good = read_number(line, "reward"), GoodSteps(self._best_step, self._best_step)
        self._lowest = min(self._lowest, reward)
        is_stuck = "entropy" in line and read_number(line, "entropy") <= ZERO_ENTROPY and reward <= self._lowest
        self._stuck_steps = self._stuck_steps + 1 if is_stuck else 0
        if self._stuck_steps >= limit:
            cause = f"for {limit} steps the entropy was 0 and the reward {reward:.3g}, its lowest"
            return Trouble(cause, step, good)
        best = self._rewards.best
        self._low_steps = self._low_steps + 1 if self._rewards.observe(reward) else 0
        if self._validations:
            return self._find_low_validations(step, good)
        if self._rewards.best > best:
            self._best_step = step
        if self._low_steps < limit:
            return None
        cause = f"for {limit} steps the reward was below {self._kept_share} of {best:.3g}, its best mean"
        return Trouble(cause, step, good)

    def _find_low_validations(self, step: int, good: GoodSteps) -> Trouble | None:
        since = self._low_validation_since
        if since is None or step - since < self._settings.collapse_steps:
            return None
        name, best = self._metric.removeprefix(PREFIX), max(self._validations)
        cause = f"since step {since} the {name} of the validations is below {self._kept_share} of {best:.3g}, its best"
        return Trouble(cause, step, good)

    def _read_validation(self, line: StepLine) -> None:
        value, step = read_number(line, self._metric), int(read_number(line, "step"))
        if not self._validations or value > max(self._validations):
            self._best_step = step
        self._validations.append(value)
        best = max(self._validations)
        if value >= (1.0 - self._settings.collapse_drop) * best or best <= 0:
            self._low_validation_since = None
        elif self._low_validation_since is None:
            self._low_validation_since = step

    @property
    def _kept_share(self) -> str:
        return f"{1.0 - self._settings.collapse_drop:.0%}"
