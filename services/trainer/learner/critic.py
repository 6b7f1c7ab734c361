"""The critic: a value head on its own copy of the policy's model, with the learner's primitives."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from services.trainer.learner.batching import MicroBatch, MicroRows, build_micro_batch, pack_for_ranks
from services.trainer.learner.device import LearnerSettings, explain_pass, require_device
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.learner.scoring import hidden_states, map_tokens
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow
from services.trainer.learner.trained_model import TrainedModel
from services.trainer.losses.aggregation import row_coefficient
from services.trainer.losses.policy_losses import ValueLossSettings, value_losses


class ValueModel(nn.Module):
    """A transformer without its language head, and a linear head that starts at value 0 everywhere."""

    def __init__(self, base_model: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.base_model = base_model
        # From value 0 the first advantages, before whitening, are the rewards themselves (with gamma and lambda 1). A
        # random head would add noise to them until the critic has learned.
        self.value_head = nn.Linear(hidden_size, 1)
        self.reset_head()

    def reset_head(self) -> None:
        """Set the head to 0."""
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, micro: MicroBatch) -> Tensor:
        """Value of the state in which each trainable token was chosen. Shape: [N]."""
        # the head is float32 whatever the transformer computes in: a value near 1 in bfloat16 is a multiple of 0.008
        return self.value_head(hidden_states(self.base_model, micro).float())[:, 0]


class Critic:
    """The learner's primitives for values: ``forward_backward``, ``optim_step``, ``save`` and ``load``."""

    def __init__(self, module: ValueModel, settings: LearnerSettings, ranks: Ranks = ALONE) -> None:
        self._module = module
        self._settings = settings
        self._ranks = ranks
        self._trained = TrainedModel(module, ranks)
        self._device = require_device(settings.device)

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._trained.steps

    def values(self, rows: Sequence[TrainRow]) -> list[FloatArray]:
        """Value before each trainable token, one array per row, 0 elsewhere."""
        return map_tokens(rows, self._module, self._settings, self._ranks)

    def forward_backward(self, batch: TrainBatch, loss: ValueLossSettings) -> LossReport:
        """Add the gradient of the value loss; rows need ``values_old`` and ``returns``."""
        rows = [row for row in batch.rows if row.trainable_tokens and row.weight]
        reports: list[LossReport] = []
        for micro_rows in self._ranks.share(pack_for_ranks(rows, self._ranks.size, self._settings.token_budget)):
            with explain_pass(micro_rows, self._settings):
                reports.append(self._micro_step(micro_rows, batch, loss))
        return LossReport.merge(self._ranks.gather(LossReport.merge(reports)))

    def _micro_step(self, rows: MicroRows, batch: TrainBatch, loss: ValueLossSettings) -> LossReport:
        micro = build_micro_batch(rows, self._device, self._settings.packed)
        values = self._module(micro)
        old = [row.values_old for row in rows if row.values_old is not None]
        returns = [row.returns for row in rows if row.returns is not None]
        if len(old) != len(rows) or len(returns) != len(rows):
            raise ValueError("the value loss needs values_old and returns in every row")
        losses, clipped = value_losses(values, micro.gather(old), micro.gather(returns), loss)
        coefficients = [
            row_coefficient(row.count(), batch.denominators, loss.aggregation, loss.aggregation_constant)
            for row in rows
        ]
        weights = torch.tensor(coefficients, dtype=torch.float32, device=self._device)[micro.rows]
        # the added zero ties the total to every token, so that backward also runs for a pass of padding rows alone
        total = (losses * weights).sum() + 0.0 * values.sum()
        total.backward()
        sums = {
            "value_tokens": float(values.numel()),
            "value": float(values.detach().sum()),
            "value_error": float((values.detach() - micro.gather(returns)).square().sum()),
            "value_clipped": float(clipped.sum()),
        }
        return LossReport(float(total.detach()), sums)

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        """Clip, step and clear the accumulated gradients; see ``Learner.optim_step``."""
        return self._trained.optim_step(settings)

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates of the settings; see ``Learner.scale_rates``."""
        self._trained.rate_factor = factor

    def save(self, folder: Path) -> None:
        """Write weights, optimizer, step counters and random generators."""
        self._trained.save(folder)

    def capture(self) -> None:
        """Copy to main memory what ``save`` would write; see ``TrainedModel.capture``."""
        self._trained.capture()

    def write_captured(self, folder: Path) -> None:
        """Write what ``capture`` copied, in any thread."""
        self._trained.write_captured(folder)

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote.

        Raises:
            searchrl.errors.ConfigurationError: the state is missing, damaged or of another model.
        """
        self._trained.load(folder)
