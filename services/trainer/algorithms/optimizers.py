"""Optimizers of a model: AdamW alone, or Muon on hidden matrices and AdamW on the rest."""

from collections.abc import Iterable

import torch
from torch import Tensor

from services.trainer.algorithms.schedules import schedule_factor
from services.trainer.algorithms.settings import OptimSettings

NamedParameter = tuple[str, torch.nn.Parameter]


class OptimizerSet:
    """One or two torch optimizers that step together, selected by ``OptimSettings.kind``."""

    def __init__(self, parameters: Iterable[NamedParameter], settings: OptimSettings) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.kind = settings.kind
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
            [group for group in groups if group["params"]],
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

    def state_dict(self) -> dict[str, dict[str, object]]:
        """State of each optimizer by its name."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: the state belongs to another set of optimizers.
        """
        if set(state) != set(self._optimizers):
            raise ValueError(f"the checkpoint holds {sorted(state)}, the run uses {sorted(self._optimizers)}")
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon may orthogonalize this parameter: a matrix between hidden layers, not an embedding or a head."""
    return parameter.dim() == 2 and not any(part in name for part in ("embed", "lm_head", "value_head"))
