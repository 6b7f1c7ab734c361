"""Steps, saves and restores a trained module; shared by the policy and the critic."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from searchrl.errors import ConfigurationError, ServiceError
from services.trainer.learner.device import explain_memory_errors
from services.trainer.learner.model_folder import fingerprint_tensors
from services.trainer.learner.optimizers import OptimizerSet, OptimizerState, OptimSettings
from services.trainer.learner.ranks import ALONE, STEP_SECONDS, Ranks
from services.trainer.learner.reports import OptimReport
from services.trainer.learner.sharded_state import check_same_shapes, holds_shards, load_shards, save_shards
from services.trainer.learner.sharding import complete, local_part, local_rows, part_of
from services.trainer.learner.training_state import random_state, read_state, restore_random_state, write_state
from services.trainer.learner.weight_files import WeightFiles, fingerprint_files

WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "state.pt"


class TrainingDiverged(ServiceError):
    """Gradients stayed non-finite; the run must return to a checkpoint or stop."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a checkpoint holds of one model, or one rank's part of it.

    Attributes:
        rest: counters and random generators.
        group: all ranks, if the tensors are sharded over them.
    """

    tensors: Mapping[str, Tensor]
    optimizer: OptimizerState
    rest: Mapping[str, Any]
    ranks: Ranks
    group: dist.ProcessGroup | None = None

    def write(self, folder: Path) -> None:
        """Write the files of this rank; returns when those of all ranks are complete."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.group is not None:
            fingerprint = ""
            save_shards(folder, self.tensors, self.optimizer, self.group)
        else:
            # safetensors refuses tensors that are not contiguous, and tensors that share memory: each tied weight is
            # here once.
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
            save_file(tensors, folder / WEIGHTS_FILE)
            fingerprint = fingerprint_tensors(tensors)
        if self.ranks.rank == 0:
            optimizer = {} if self.group is not None else self.optimizer
            write_state(folder / STATE_FILE, {"fingerprint": fingerprint, "optimizer": optimizer, **self.rest})
        if self.ranks.size > 1:
            write_state(folder / random_file(self.ranks.rank), self.rest["random"])
        if self.group is not None:
            dist.barrier(self.group)


class TrainedModel:
    """A module with its optimizer, its count of optimizer steps, and an exact state on disk.

    If the module is sharded, so are its gradients and the optimizer's moments.
    """

    def __init__(self, module: nn.Module, ranks: Ranks = ALONE) -> None:
        self.module = module
        self.steps = 0
        self.rate_factor = 1.0  # of the learning rates; of the run and not of this state, so it is not saved here
        self._ranks = ranks
        self._optimizer: OptimizerSet | None = None
        self._saved_optimizer: OptimizerState | None = None
        self._captured: ModelState | None = None
        self._save_group: dist.ProcessGroup | None = None
        self._skipped_in_a_row = 0
        self._skipped_total = 0

    def tensors(self) -> dict[str, Tensor]:
        """Every trained weight once, by name; references, not copies."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def optim_step(self, settings: OptimSettings) -> OptimReport:
        """Clip the accumulated gradients, step and clear them; skip the step if they are not finite.

        Raises:
            TrainingDiverged: too many steps in a row were skipped.
            ConfigurationError: another kind of optimizer than in earlier steps, or no memory left for its state.
        """
        optimizer = self._optimizer_for(settings)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in parameters:
            # all ranks must add the same tensors to the norm, also one whose rows left a parameter without a gradient
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # The norm is that of all ranks' parts, the same on every rank, so all of them step, or none does.
        norm = float(complete(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)))
        finite = norm == norm and norm != float("inf")  # NaN differs from itself
        if norm == 0.0:  # no row had a gradient: a step would move the weights by momentum alone
            for parameter in parameters:
                parameter.grad = None
            return OptimReport(self.steps, 0.0, 0.0, skipped_total=self._skipped_total, is_idle=True)
        # Gradients whose norm is not finite are dropped, and neither the weights nor the optimizer's moments change: a
        # NaN in a moving average never leaves it.
        with explain_memory_errors(
            "the optimizer's state", "take a GPU with more memory, more ranks or a smaller model"
        ):
            rate = optimizer.step(settings.scale(self.rate_factor), self.steps) if finite else 0.0
        for parameter in parameters:
            parameter.grad = None  # not zeros: scoring and publishing until the next backward pass can use the memory
        if finite:
            self.steps += 1
            self._skipped_in_a_row = 0
        else:
            self._count_skip(settings)
        return OptimReport(self.steps, norm, rate, not finite, self._skipped_total)

    def _count_skip(self, settings: OptimSettings) -> None:
        self._skipped_total += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= settings.max_skipped_in_a_row:
            raise TrainingDiverged(f"gradients were not finite {self._skipped_in_a_row} times in a row")

    def _optimizer_for(self, settings: OptimSettings) -> OptimizerSet:
        if self._optimizer is None:
            self._optimizer = OptimizerSet(self.module.named_parameters(), settings)
            if self._saved_optimizer is not None:
                self._restore_optimizer(self._optimizer, self._saved_optimizer)
                self._saved_optimizer = None
        if self._optimizer.kind != settings.kind:
            raise ConfigurationError(f"this run steps with {self._optimizer.kind}; it cannot change to {settings.kind}")
        return self._optimizer

    @staticmethod
    def _restore_optimizer(optimizer: OptimizerSet, state: OptimizerState) -> None:
        try:
            optimizer.load_state_dict(state)
        except ValueError as error:
            raise ConfigurationError(f"the checkpoint's optimizer does not fit: {error}") from error

    def save(self, folder: Path) -> None:
        """Write weights, optimizer, step counters and random generators; every rank writes its own part."""
        self._state(is_copy=False).write(folder)

    def capture(self) -> None:
        """Copy to main memory what ``save`` would write, for ``write_captured``; all ranks must call it."""
        self._captured = self._state(is_copy=True)

    def write_captured(self, folder: Path) -> None:
        """Write what ``capture`` copied, and free it; another thread may do so while this model is trained.

        Raises:
            ValueError: nothing was captured since the last write.
        """
        captured, self._captured = self._captured, None
        if captured is None:
            raise ValueError("there is no captured state to write")
        captured.write(folder)

    def _state(self, *, is_copy: bool) -> ModelState:
        tensors = self.tensors()
        optimizer = self._optimizer.state_dict() if self._optimizer is not None else self._saved_optimizer or {}
        rest = {
            "steps": self.steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "skipped_total": self._skipped_total,
            "random": random_state(),
        }
        if is_copy:
            tensors = {name: _copy(tensor) for name, tensor in tensors.items()}
            optimizer = {
                kind: {
                    name: {key: _copy(moment) for key, moment in moments.items()}
                    for name, moments in parameters.items()
                }
                for kind, parameters in optimizer.items()
            }
        group = self._group_of_saves() if any(isinstance(tensor, DTensor) for tensor in tensors.values()) else None
        return ModelState(tensors, optimizer, rest, self._ranks, group)

    def _group_of_saves(self) -> dist.ProcessGroup:
        # A group of its own: the collectives of a write in another thread must not meet those of the training.
        if self._save_group is None:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=STEP_SECONDS))
            assert isinstance(group, dist.ProcessGroup)
            self._save_group = group
        return self._save_group

    def load(self, folder: Path) -> None:
        """Restore exactly what ``save`` wrote, on any number of ranks.

        Raises:
            ConfigurationError: files are missing, belong to another model, or do not match their fingerprint.
        """
        has_shards = holds_shards(folder)
        if not (has_shards or (folder / WEIGHTS_FILE).is_file()) or not (folder / STATE_FILE).is_file():
            raise ConfigurationError(f"{folder} holds no learner state; expected {WEIGHTS_FILE} and {STATE_FILE}")
        state = read_state(folder / STATE_FILE)
        tensors = self.tensors()
        if has_shards:
            optimizer = load_shards(folder, tensors)
        else:
            files = WeightFiles([folder / WEIGHTS_FILE])
            check_same_shapes({name: files.shape(name) for name in files.names()}, tensors, folder)
            if fingerprint_files(files) != state["fingerprint"]:
                raise ConfigurationError(
                    f"the weights in {folder} do not match their fingerprint; use another checkpoint"
                )
            with torch.no_grad():
                for name, tensor in tensors.items():
                    # in place, because tied layers share these parameters
                    local_part(tensor).copy_(files.rows(name, local_rows(tensor)))
            optimizer = {
                kind: {
                    name: {key: part_of(moment, tensors[name]) for key, moment in moments.items()}
                    for name, moments in saved.items()
                }
                for kind, saved in state["optimizer"].items()
            }
        # The optimizer is built by the next step, whose settings it needs; until then its saved state is kept here.
        self._optimizer, self._saved_optimizer = None, optimizer or None
        self.steps = state["steps"]
        self._skipped_in_a_row, self._skipped_total = state["skipped_in_a_row"], state["skipped_total"]
        own = folder / random_file(self._ranks.rank)
        restore_random_state(read_state(own) if own.is_file() else state["random"])


def random_file(rank: int) -> str:
    """Name of the file with a rank's random generators."""
    return f"random_rank_{rank}.pt"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
