"""Provides one trainable policy behind five primitives that every training loop composes."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from services.trainer.learner.adapters import (
    ADAPTER_FILE,
    adapter_config,
    adapter_parameters,
    gather_adapter,
    gather_each,
    weight_shapes,
    write_adapter_config,
)
from services.trainer.learner.batching import MicroBatch, MicroRows, build_micro_batch, pack_for_ranks
from services.trainer.learner.device import DTYPES, LearnerSettings, LoraSettings, explain_pass, require_device
from services.trainer.learner.model_folder import export_model, fingerprint_tensors, write_config, write_model_folder
from services.trainer.learner.open_models import open_policy
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.reports import LossReport, OptimReport, PublishedWeights
from services.trainer.learner.scoring import PolicyModel, TokenOutputs, compute_logprobs
from services.trainer.learner.sharding import is_sharded
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow
from services.trainer.learner.trained_model import TrainedModel
from services.trainer.learner.weight_files import write_weights
from services.trainer.losses.aggregation import row_coefficient
from services.trainer.losses.policy_losses import LossSettings, PolicyTokens, token_losses

ADAPTER = "adapter"  # folder of an exported model with the adapter alone


class Learner:
    """One policy, or one rank's part of it. SFT, GRPO and PPO are sequences of its five primitives.

    The primitives are ``forward_backward``, ``optim_step``, ``publish``, ``save`` and ``load``; ``logprobs`` and
    ``export`` change nothing. Not thread-safe: one thread owns the learner. All ranks call the same methods with the
    same arguments, in the same order.
    """

    def __init__(self, policy: PolicyModel, folder: Path, settings: LearnerSettings, ranks: Ranks = ALONE) -> None:
        self.policy = policy
        self.model = policy.language_model
        self.settings = settings
        self._folder = folder
        self.ranks = ranks
        self._module = cast(nn.Module, self.model)
        self._trained = TrainedModel(self._module, ranks)
        self._device = require_device(settings.device)

    @classmethod
    def from_folder(cls, folder: Path, settings: LearnerSettings, seed: int, ranks: Ranks = ALONE) -> Self:
        """Load a Hugging Face folder and seed every random generator.

        Raises:
            searchrl.errors.ConfigurationError: the folder or the device cannot be used.
        """
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        adapter_seed = seed  # the same on all ranks
        seed += ranks.rank  # so that the ranks do not draw the same random numbers
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy accepts 32 bits only
        torch.manual_seed(seed)
        return cls(open_policy(Path(folder), settings, ranks, seed=adapter_seed), Path(folder), settings, ranks)

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._trained.steps

    def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport:
        """Add the gradient of the batch's loss to the accumulated gradients.

        The loss is normalized by the batch's denominators, so the gradients of shares of one optimizer batch add up.
        Rows that cannot have a gradient are not run. Each rank is given all rows and runs its share of them; the report
        is that of all ranks.

        Raises:
            searchrl.errors.ConfigurationError: a micro-batch does not fit into the GPU's memory.
        """
        # Rows that are not run stay in the batch's denominators: leaving them out saves their passes and changes
        # neither the loss nor the gradient.
        rows = [row for row in batch.rows if row.trainable_tokens and row.weight and has_gradient(row, loss)]
        reports: list[LossReport] = []
        for micro_rows in self.ranks.share(pack_for_ranks(rows, self.ranks.size, self.settings.token_budget)):
            with explain_pass(micro_rows, self.settings):
                reports.append(self._micro_step(micro_rows, batch, loss))
        skipped = LossReport(0.0, {"skipped_rows": float(len(batch.rows) - len(rows))})
        return LossReport.merge([skipped, *self.ranks.gather(LossReport.merge(reports))])

    def _micro_step(self, rows: MicroRows, batch: TrainBatch, loss: LossSettings) -> LossReport:
        micro = build_micro_batch(rows, self._device, self.settings.packed)
        entropy = self.settings.track_entropy and loss.policy != "cross_entropy"
        outputs = self._outputs(micro, entropy, entropy_gradient=loss.entropy_coefficient != 0)
        losses, sums = token_losses(self._policy_tokens(micro, outputs, loss), loss)
        coefficients = self._row_coefficients(micro, batch, loss)[micro.rows]
        # the added zero ties the total to every token, so that backward also runs for a pass of padding rows alone
        total = (losses * coefficients).sum() + 0.0 * outputs.logprobs.sum()
        total.backward()
        if loss.policy == "cross_entropy":
            sums = sums | supervised_sums(micro, outputs.logprobs.detach())
        padding = micro.token_ids.numel() - sum(len(row) for row in rows)
        return LossReport(float(total.detach()), sums | {"padding_tokens": float(padding), "micro_batches": 1.0})

    def _policy_tokens(self, micro: MicroBatch, outputs: TokenOutputs, loss: LossSettings) -> PolicyTokens:
        behavior = micro.gather([row.behavior_logprobs for row in micro.source])
        references = [row.reference_logprobs for row in micro.source if row.reference_logprobs is not None]
        proximals = [row.proximal_logprobs for row in micro.source if row.proximal_logprobs is not None]
        if loss.old_policy == "proximal" and len(proximals) != len(micro.source):
            raise ValueError("old_policy proximal needs proximal_logprobs in every row")
        return PolicyTokens(
            logprobs=outputs.logprobs,
            behavior_logprobs=behavior,
            old_logprobs=micro.gather(proximals) if loss.old_policy == "proximal" else behavior,
            advantages=micro.gather([row.advantages for row in micro.source]),
            rows=micro.rows,
            row_count=len(micro.source),
            actions=micro.actions,
            entropy=outputs.entropy,
            reference_logprobs=micro.gather(references) if len(references) == len(micro.source) else None,
        )

    def _row_coefficients(self, micro: MicroBatch, batch: TrainBatch, loss: LossSettings) -> Tensor:
        values = [
            row_coefficient(row.count(), batch.denominators, loss.reduction, loss.aggregation_constant)
            for row in micro.source
        ]
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _outputs(self, micro: MicroBatch, entropy: bool, entropy_gradient: bool = False) -> TokenOutputs:
        return TokenOutputs(*self.policy(micro, entropy, entropy_gradient, self.settings.logit_budget))

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        """Clip, step and clear the accumulated gradients; a step with non-finite gradients is skipped and counted.

        Raises:
            services.trainer.learner.trained_model.TrainingDiverged: too many steps in a row were skipped.
        """
        return self._trained.optim_step(settings)

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates of the settings by ``factor`` from now on; it replaces an earlier factor."""
        self._trained.rate_factor = factor

    def publish(self, version: int) -> PublishedWeights:
        """Copy the weights, each once, and compute the fingerprint by which engines are checked."""
        # A copy: otherwise the next optimizer step would change weights that an engine in another thread still loads.
        tensors = {name: tensor.cpu().clone() for name, tensor in self._gathered(torch.float32)}
        return PublishedWeights(version, fingerprint_tensors(tensors), tensors)

    def publish_adapter(self, version: int) -> PublishedWeights:
        """Copy the adapter alone, for engines that hold the model itself; the fingerprint is that of the adapter."""
        tensors = {name: tensor.cpu().clone() for name, tensor in gather_adapter(self._module, self.settings.device)}
        config = adapter_config(self.model, self._adapter_settings(), self._folder)
        return PublishedWeights(version, fingerprint_tensors(tensors), tensors, adapter_config=config)

    def write_weights(self, file: Path, dtype: str = "float32") -> str:
        """Write the weights into one safetensors file, tensor by tensor, and return their fingerprint.

        Every rank must call it: the tensors are gathered from all of them, and rank 0 writes.
        """
        return self._write_tensors(file, weight_shapes(self._module), DTYPES[dtype], self._gathered(DTYPES[dtype]))

    def _write_tensors(
        self, file: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, gathered: Iterator[tuple[str, Tensor]]
    ) -> str:
        if self.ranks.rank == 0:
            return write_weights(file, shapes, dtype, (tensor for _, tensor in gathered))
        for _ in gathered:  # takes part in each gathering
            pass
        return ""

    def _gathered(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        return gather_each(self._module, self.settings.device, dtype)

    def save(self, folder: Path) -> None:
        """Write weights, optimizer, schedule position and random generators for a bit-exact resume."""
        self._trained.save(Path(folder))

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
        self._trained.load(Path(folder))

    def logprobs(self, rows: Sequence[TrainRow]) -> list[FloatArray]:
        """Log-probability of every trainable token under the current weights, one array per row, 0 elsewhere."""
        return compute_logprobs(self.policy, rows, self.settings, self.ranks)

    def export(self, folder: Path, dtype: str = "float32") -> None:
        """Write a Hugging Face folder: config, weights, tokenizer and searcher profile.

        The weights include the adapter, if one is trained; the folder ``adapter`` then holds it alone.
        """
        folder, has_adapter = Path(folder), isinstance(self.settings.adapter, LoraSettings)
        if not is_sharded(self.settings, self.ranks) and not has_adapter:
            export_model(self.model, self._folder, folder, dtype)
        elif self.ranks.rank == 0:
            write_model_folder(lambda fresh: self._write_model(fresh, dtype), self._folder, folder)
        else:
            self.write_weights(folder, dtype)
        if has_adapter:
            self.write_adapter(folder / ADAPTER)

    def _write_model(self, folder: Path, dtype: str) -> None:
        write_config(self.model, folder, dtype)
        self.write_weights(folder / "model.safetensors", dtype)

    def write_adapter(self, folder: Path) -> str:
        """Write the adapter alone, as peft and vLLM load it beside the model that the run started from.

        Every rank must call it; rank 0 returns the adapter's fingerprint.
        """
        if self.ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_adapter_config(adapter_config(self.model, self._adapter_settings(), self._folder), folder)
        gathered = gather_adapter(self._module, self.settings.device)
        shapes = {name: matrix.shape for name, matrix in adapter_parameters(self._module).items()}
        return self._write_tensors(folder / ADAPTER_FILE, shapes, torch.float32, gathered)

    def _adapter_settings(self) -> LoraSettings:
        if not isinstance(self.settings.adapter, LoraSettings):
            raise ValueError("this learner trains every weight and has no adapter")
        return self.settings.adapter


def has_gradient(row: TrainRow, loss: LossSettings) -> bool:
    """Whether the row can move the policy: some advantage is not 0, or the loss has a term without advantages."""
    return loss.uses_every_token or bool(row.advantages[row.mask].any())


def supervised_sums(micro: MicroBatch, logprobs: Tensor) -> dict[str, float]:
    """Negative log-likelihood of the policy's tokens and of the environment's, which have no version (-1)."""
    own = micro.gather([row.versions for row in micro.source]) >= 0
    return {
        "action_tokens": float(own.sum()),
        "action_nll": -float(logprobs[own].sum()),
        "environment_tokens": float((~own).sum()),
        "environment_nll": -float(logprobs[~own].sum()),
    }
