"""AdamW, or Muon on hidden matrices and AdamW on the rest, with a learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Literal, Self

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor

from searchrl.platform.settings import Section


class ScheduleSettings(Section):
    """Learning rate over optimizer steps, as a factor of the base rate."""

    kind: Literal["constant", "linear", "cosine"] = Field(default="constant", description="Shape after the warm-up.")
    warmup_steps: NonNegativeInt = Field(default=0, description="Steps of linear warm-up.")
    total_steps: PositiveInt | None = Field(default=None, description="Step at which the decay ends.")
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="Factor at the end of the decay.")

    @model_validator(mode="after")
    def _check_total(self) -> Self:
        if self.kind != "constant" and self.total_steps is None:
            raise ValueError(f"a {self.kind} schedule needs total_steps")
        return self


class OptimSettings(Section):
    """The optimizer of one model."""

    kind: Literal["adamw", "muon"] = Field(default="adamw", description="muon: Muon on matrices, AdamW on the rest.")
    learning_rate: NonNegativeFloat = Field(default=5e-4, description="Rate of AdamW.")
    # Muon's update has singular values near 1 whatever the gradient's size is, so its rate is on another scale than
    # AdamW's, which moves every entry by about the rate.
    muon_learning_rate: NonNegativeFloat = Field(default=0.025, description="Rate of Muon's matrices.")
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Momentum of Muon.")
    # 0.95 instead of Adam's 0.999, as is usual for language models: the second moment averages about 1 / (1 - 0.95) =
    # 20 steps, not 1,000, so a spike of gradients is forgotten soon.
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Decay of AdamW's moments.")
    epsilon: PositiveFloat = Field(default=1e-8, description="Floor of AdamW's denominator.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="Decoupled decay of matrices; vectors never decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Gradients are scaled down to this norm.")
    max_skipped_in_a_row: PositiveInt = Field(default=3, description="Steps without finite gradients before giving up.")
    schedule: ScheduleSettings = Field(default=ScheduleSettings(), description="Learning rate over steps.")

    def scale(self, factor: float) -> Self:
        """Return the same settings with all learning rates multiplied by ``factor``."""
        rates = {name: getattr(self, name) * factor for name in ("learning_rate", "muon_learning_rate")}
        return self.model_copy(update=rates)


NamedParameter = tuple[str, torch.nn.Parameter]
OptimizerState = dict[str, dict[str, dict[str, Tensor]]]
"""State of each optimizer, by its name, the parameter's name and the name of the moment."""


class OptimizerSet:
    """One or two torch optimizers that step together, selected by ``OptimSettings.kind``."""

    def __init__(self, parameters: Iterable[NamedParameter], settings: OptimSettings) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.kind = settings.kind
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named}
        matrices = [p for name, p in named if is_hidden_matrix(name, p)]
        others = [(name, p) for name, p in named if not is_hidden_matrix(name, p)]
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        if settings.kind == "muon" and matrices:
            self._optimizers["muon"] = torch.optim.Muon(
                matrices,
                lr=settings.muon_learning_rate,
                momentum=settings.muon_momentum,
                weight_decay=settings.weight_decay,
            )
            named = others
        groups = [
            {"params": [p for _, p in named if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self._optimizers["adamw"] = torch.optim.AdamW(
            [group for group in groups if group["params"]],  # ``step`` reads the first parameter of every group
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
        )

    def step(self, settings: OptimSettings, step: int) -> float:
        """Update every parameter with the given settings; return AdamW's learning rate at optimizer step ``step``.

        Settings are written into the parameter groups at each step, because a restored state contains the settings of
        the run that saved it.
        """
        factor = schedule_factor(settings.schedule, step)
        rate = settings.learning_rate * factor
        if muon := self._optimizers.get("muon"):
            values = {"lr": settings.muon_learning_rate * factor, "momentum": settings.muon_momentum}
            for group in muon.param_groups:
                group.update(values, weight_decay=settings.weight_decay)
        for group in self._optimizers["adamw"].param_groups:
            decays = group["params"][0].dim() > 1  # biases and norms are vectors and never decay
            group.update(
                lr=rate,
                betas=settings.betas,
                eps=settings.epsilon,
                weight_decay=settings.weight_decay if decays else 0.0,
            )
        for optimizer in self._optimizers.values():
            optimizer.step()
        return rate

    def state_dict(self) -> OptimizerState:
        """The moments of each optimizer."""
        # By name and not by position, as torch does it: only names are the same for a model in another number of parts.
        return {
            name: {self._names[parameter]: dict(state) for parameter, state in optimizer.state.items()}
            for name, optimizer in self._optimizers.items()
        }

    def load_state_dict(self, state: OptimizerState) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: the state belongs to another set of optimizers.
        """
        if set(state) != set(self._optimizers):
            raise ValueError(f"the checkpoint holds {sorted(state)}, the run uses {sorted(self._optimizers)}")
        parameters = {name: parameter for parameter, name in self._names.items()}
        for name, optimizer in self._optimizers.items():
            if unknown := state[name].keys() - parameters.keys():
                raise ValueError(f"the checkpoint holds moments of {min(unknown)}, which the run does not train")
            for parameter_name, moments in state[name].items():
                parameter = parameters[parameter_name]
                # the number of steps stays on the CPU, where torch keeps it
                optimizer.state[parameter] = {
                    key: moment.to(parameter.device) if moment.dim() else moment for key, moment in moments.items()
                }


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon may orthogonalize this parameter: a matrix between hidden layers, not an embedding or a head."""
    # By name, because all of them have two dimensions. Muon's author (Jordan 2024, "an optimizer for hidden layers")
    # leaves embeddings and heads to AdamW.
    return parameter.dim() == 2 and not any(part in name for part in ("embed", "lm_head", "value_head"))


def schedule_factor(settings: ScheduleSettings, step: int) -> float:
    """Return the factor of the base rate for the step with index ``step``, counted from 0.

    The warm-up reaches 1 at its last step: (step + 1) / warmup_steps.
    """
    factor = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.kind == "constant" or settings.total_steps is None:
        return factor
    progress = min(1.0, step / settings.total_steps)
    if settings.kind == "linear":
        return factor * max(settings.final_fraction, 1.0 - progress)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return factor * (settings.final_fraction + (1.0 - settings.final_fraction) * cosine)
