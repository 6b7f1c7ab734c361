"""The optimizers: which one takes which parameter, weight decay, schedules and restored state."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from services.trainer.learner.optimizers import (
    OptimizerSet,
    OptimSettings,
    ScheduleSettings,
    is_hidden_matrix,
    schedule_factor,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 5, bias=False)


def stepped(settings: OptimSettings, step: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = OptimizerSet(model.named_parameters(), settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rate = optimizers.step(settings, step)
    return before, {name: p.detach() for name, p in model.named_parameters()}, rate


def test_only_matrices_between_hidden_layers_are_given_to_muon() -> None:
    chosen = [name for name, parameter in Small().named_parameters() if is_hidden_matrix(name, parameter)]
    assert chosen == ["hidden.weight"]


def test_muon_moves_matrices_at_its_own_rate_and_adamw_the_rest() -> None:
    settings = OptimSettings(kind="muon", learning_rate=0.0, muon_learning_rate=0.1)
    before, after, _ = stepped(settings)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["hidden.weight"]


def test_adamw_moves_every_parameter_by_its_rate_at_the_first_step() -> None:
    before, after, rate = stepped(OptimSettings(learning_rate=0.01))
    assert rate == 0.01
    for name in before:  # the first AdamW step is the rate times the gradient's sign
        assert torch.allclose(before[name] - after[name], torch.full_like(before[name], 0.01), atol=1e-6)


def test_weight_decay_acts_on_matrices_and_not_on_vectors() -> None:
    before, after, _ = stepped(OptimSettings(learning_rate=0.01, weight_decay=0.5))
    shift = before["hidden.bias"] - after["hidden.bias"]
    assert torch.allclose(shift, torch.full_like(shift, 0.01), atol=1e-6)
    decayed = before["hidden.weight"] * (1 - 0.01 * 0.5) - 0.01
    assert torch.allclose(after["hidden.weight"], decayed, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_settings_of_today_apply_to_a_restored_state_of_yesterday(kind) -> None:
    yesterday = OptimSettings(kind=kind)
    today = OptimSettings(
        kind=kind, learning_rate=0.01, betas=(0.5, 0.6), epsilon=1e-3, weight_decay=0.3, muon_momentum=0.7,
    )  # fmt: skip
    model = Small()
    before = OptimizerSet(model.named_parameters(), yesterday)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before.step(yesterday, 0)
    restored = OptimizerSet(model.named_parameters(), today)
    restored.load_state_dict(before.state_dict())
    restored.step(today, 1)
    groups: dict[str, Any] = {name: optimizer.param_groups for name, optimizer in restored._optimizers.items()}
    decays = [group["weight_decay"] for group in groups["adamw"]]
    assert {(group["lr"], group["betas"], group["eps"]) for group in groups["adamw"]} == {(0.01, (0.5, 0.6), 1e-3)}
    assert decays == [0.3, 0.0]  # matrices, then vectors
    assert [(group["momentum"], group["weight_decay"]) for group in groups.get("muon", [])] in ([], [(0.7, 0.3)])
    assert ("muon" in groups) == (kind == "muon")


def test_the_schedule_scales_both_rates() -> None:
    schedule = ScheduleSettings(warmup_steps=10)
    _, _, rate = stepped(OptimSettings(learning_rate=0.5, schedule=schedule), step=3)
    assert rate == pytest.approx(0.2)


def test_state_of_another_kind_of_optimizer_is_refused() -> None:
    muon = OptimizerSet(Small().named_parameters(), OptimSettings(kind="muon"))
    with pytest.raises(ValueError, match="the checkpoint holds"):
        OptimizerSet(Small().named_parameters(), OptimSettings()).load_state_dict(muon.state_dict())


def test_warm_up_reaches_one_at_its_last_step_and_stays() -> None:
    settings = ScheduleSettings(warmup_steps=4)
    assert [schedule_factor(settings, step) for step in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_linear_decay_ends_at_the_final_fraction() -> None:
    settings = ScheduleSettings(kind="linear", total_steps=10, final_fraction=0.05)
    assert [schedule_factor(settings, step) for step in (0, 5, 10, 20)] == pytest.approx([1.0, 0.5, 0.05, 0.05])


def test_cosine_decay_is_halfway_in_the_middle() -> None:
    settings = ScheduleSettings(kind="cosine", total_steps=10, final_fraction=0.2)
    assert [schedule_factor(settings, step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])


def test_a_decay_without_an_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="total_steps"):
        ScheduleSettings(kind="linear")
