"""Losses and gradients of GRPO, Dr. GRPO, DAPO, CISPO and GSPO equal those of TRL's code on the same tensors.

``tests/golden/write_trl_losses.py`` ran that code.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from services.trainer.algorithms.base import UpdateSettings
from services.trainer.algorithms.grpo import DrGrpo, DrGrpoSettings, GrpoSettings, GspoSettings
from services.trainer.learner.batching import MicroBatch
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.train_batch import RowKey, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[3] / "golden" / "trl_losses.json").read_text())
INPUTS = {name: np.array(values) for name, values in GOLDEN["inputs"].items()}
MASK = (INPUTS["completion_mask"] * INPUTS["tool_mask"]).astype(bool)
# TRL's settings in this project's names. TRL's upper bound of CISPO is the ratio itself, and it has no lower one.
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"clip_high": 0.2, "aggregation": "seq_mean_token_mean"},
    "grpo, two-sided clipping": {"clip_high": 0.2, "aggregation": "seq_mean_token_mean", "dual_clip": 1.5},
    "dr_grpo": {
        "clip_high": 0.2, "aggregation": "seq_sum_const", "aggregation_constant": GOLDEN["most_tokens"],
    },
    "dapo": {},
    "cispo": {"policy": "cispo", "clip_low": 1.0, "clip_high": 0.5},
    "gspo": {"policy": "gspo"},
}  # fmt: skip


KINDS: dict[str, LossSettings] = {
    "dr_grpo": DrGrpo(DrGrpoSettings(), UpdateSettings(), GOLDEN["most_tokens"]).loss,
    "dapo": GrpoSettings().loss,
    "gspo": GspoSettings().loss,
}


class FixedPolicy(nn.Module):
    """A policy whose parameters are the log-probabilities of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.logprobs = nn.Parameter(torch.tensor(INPUTS["per_token_logps"], dtype=torch.float32))

    @property
    def language_model(self) -> nn.Module:
        return self

    def forward(self, micro: MicroBatch, *_: object) -> tuple[Tensor, None]:
        width = self.logprobs.shape[1]
        positions = [row.key.rollout_index * width + np.arange(len(row)) - 1 for row in micro.source]
        return self.logprobs.flatten()[micro.gather(positions).long()], None


def read_rows() -> list[TrainRow]:
    """Return TRL's padded completions as rows, each behind one prompt token."""
    rows: list[TrainRow] = []
    for index, mask in enumerate(MASK):
        length = int(INPUTS["completion_mask"][index].sum())
        mask = np.concatenate([[False], mask[:length]])
        behavior = np.concatenate([[0.0], INPUTS["old_per_token_logps"][index, :length]])
        rows.append(
            TrainRow(
                key=RowKey(0, index),
                token_ids=np.zeros(length + 1, dtype=np.int64),
                mask=mask,
                behavior_logprobs=np.where(mask, behavior, 0).astype(np.float32),
                versions=np.where(mask, 0, -1),
                kinds=np.zeros(length + 1, dtype=np.int64),
                advantages=np.where(mask, INPUTS["advantages"][index], 0).astype(np.float32),
            )
        )
    return rows


@pytest.mark.parametrize("token_budget", [1024, 26], ids=["one pass", "several passes"])
@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_loss_and_gradient_are_those_of_trl(name: str, token_budget: int, tmp_path: Path) -> None:
    policy: Any = FixedPolicy()
    learner = Learner(policy, tmp_path, LearnerSettings(token_budget=token_budget, track_entropy=False))
    report = learner.forward_backward(TrainBatch.of(read_rows()), LossSettings.model_validate(SETTINGS[name]))
    expected = GOLDEN["cases"][name]
    assert (report.sums["micro_batches"] > 1) == (token_budget < 1024)
    assert report.loss == pytest.approx(expected["loss"], abs=1e-6)
    assert np.abs(policy.logprobs.grad.numpy() - np.array(expected["gradient"])).max() < 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_the_default_loss_of_each_kind_is_that_of_trl(name: str, tmp_path: Path) -> None:
    policy: Any = FixedPolicy()
    learner = Learner(policy, tmp_path, LearnerSettings(track_entropy=False))
    report = learner.forward_backward(TrainBatch.of(read_rows()), KINDS[name])
    expected = GOLDEN["cases"][name]
    assert report.loss == pytest.approx(expected["loss"], abs=1e-6)
    assert np.abs(policy.logprobs.grad.numpy() - np.array(expected["gradient"])).max() < 1e-6


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_the_tensors_reach_the_bounds_of_each_loss(name: str) -> None:
    """A loss that clips nothing would also agree if the bounds were wrong."""
    gradient = np.array(GOLDEN["cases"][name]["gradient"])
    assert not gradient[~MASK].any() and gradient[MASK].any()
    if name == "cispo":  # keeps every gradient, so its bound is seen in the ratios
        ratios = np.exp(INPUTS["per_token_logps"] - INPUTS["old_per_token_logps"])
        assert (ratios[MASK] > 1.5).any() and gradient[MASK].all()
    else:
        assert not gradient[MASK].all()


def test_the_cases_are_those_that_trl_computed() -> None:
    from tests.golden.write_trl_losses import CASES, draw_inputs

    assert GOLDEN["trl"] and set(SETTINGS) == set(CASES)
    assert {name: case["settings"] for name, case in GOLDEN["cases"].items()} == CASES
    for name, tensor in draw_inputs().items():
        assert np.array_equal(tensor.numpy(), INPUTS[name].astype(tensor.numpy().dtype)), name
