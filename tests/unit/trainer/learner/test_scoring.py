"""Log-probabilities of the forward pass against analytic values.

Each token is scored by the state before it, and logits are divided by the temperature at which the row was sampled.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from services.trainer.learner.batching import build_micro_batch
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.scoring import forward_logprobs
from services.trainer.learner.train_batch import RowKey, TrainRow
from tests.fakes.train_rows import random_rows

CPU = torch.device("cpu")
# logits after token i: row i of this table; vocabulary of 3
TABLE = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0], [3.0, 0.0, 0.0]])


class TableModel(nn.Module):
    """A model whose hidden state of a token is its row of the table; the head is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight.data = torch.eye(3)

    @property
    def base_model(self):
        return lambda input_ids, **_: SimpleNamespace(last_hidden_state=TABLE[input_ids])

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def row_of(ids: list[int], mask: list[bool], temperature: float = 1.0, group_id: int = 0) -> TrainRow:
    zeros = np.zeros(len(ids), dtype=np.float32)
    integers = np.zeros(len(ids), dtype=np.int64)
    key = RowKey(group_id, 0)
    return TrainRow(key, np.array(ids), np.array(mask), zeros, integers, integers, zeros, temperature=temperature)


@pytest.mark.parametrize("packed", [False, True])
def test_each_token_is_scored_by_the_state_before_it(packed: bool) -> None:
    # 5 tokens 0 2 1 1 0, trained at positions 1, 3 and 4: predicted by tokens 0, 1 and 1
    rows = [row_of([0, 2, 1, 1, 0], [False, True, False, True, True]), row_of([2, 0], [False, True], group_id=1)]
    micro = build_micro_batch(rows, CPU, packed)
    outputs = forward_logprobs(cast(PreTrainedModel, TableModel()), micro, entropy=True, logit_budget=1 << 20)
    log_table = torch.log_softmax(TABLE, dim=-1)
    expected = [log_table[0, 2], log_table[1, 1], log_table[1, 0], log_table[2, 0]]
    assert outputs.logprobs.tolist() == pytest.approx([float(value) for value in expected], abs=1e-6)
    assert micro.targets.tolist() == [2, 1, 0, 0]
    assert micro.rows.tolist() == [0, 0, 0, 1]
    assert micro.actions.tolist() == [0, 1, 1, 2]
    entropy = -(log_table.exp() * log_table).sum(-1)
    assert outputs.entropy is not None
    assert outputs.entropy.tolist() == pytest.approx([float(entropy[i]) for i in (0, 1, 1, 2)], abs=1e-6)


def test_logits_are_divided_by_the_temperature_of_the_row() -> None:
    rows = [row_of([0, 2], [False, True], 0.6), row_of([0, 2], [False, True], 1.0, group_id=1)]
    outputs = forward_logprobs(
        cast(PreTrainedModel, TableModel()), build_micro_batch(rows, CPU), entropy=False, logit_budget=1 << 20
    )
    expected = [torch.log_softmax(TABLE[0] / t, -1)[2] for t in (0.6, 1.0)]
    assert outputs.logprobs.tolist() == pytest.approx([float(value) for value in expected], abs=1e-6)


def test_values_scatter_back_to_their_own_positions() -> None:
    rows = random_rows(4)
    micro = build_micro_batch(rows, CPU)
    arrays = micro.scatter(micro.gather([row.behavior_logprobs for row in rows]))
    for row, array in zip(rows, arrays, strict=True):
        assert np.array_equal(array, row.behavior_logprobs)


@pytest.mark.parametrize("settings", [{"packed": True}, {"token_budget": 64}, {"logit_budget": 100}])
def test_padding_packing_and_chunking_give_the_same_logprobs(model_folder: Path, settings: dict) -> None:
    rows = [replace(row, temperature=0.8) for row in random_rows(12)]
    plain = Learner.from_folder(model_folder, LearnerSettings(), 0).logprobs(rows)
    other = Learner.from_folder(model_folder, LearnerSettings(**settings), 0).logprobs(rows)
    for first, second in zip(plain, other, strict=True):
        assert np.allclose(first, second, atol=3e-6)


def test_logprobs_equal_a_plain_pass_of_the_model_row_by_row(model_folder: Path) -> None:
    rows = random_rows(6)
    learner = Learner.from_folder(model_folder, LearnerSettings(), 0)
    for row, array in zip(rows, learner.logprobs(rows), strict=True):
        with torch.no_grad():
            logits = learner.model(input_ids=torch.from_numpy(row.token_ids)[None]).logits[0]
        scored = torch.log_softmax(logits[:-1], -1).gather(1, torch.from_numpy(row.token_ids[1:])[:, None])[:, 0]
        expected = np.where(row.mask, np.concatenate([[0.0], scored.numpy()]), 0)
        assert np.allclose(array, expected, atol=3e-6)


def test_rows_without_trainable_tokens_score_zero(model_folder: Path) -> None:
    row = random_rows(1)[0]
    silent = replace(row, mask=np.zeros(len(row), dtype=bool))
    learner = Learner.from_folder(model_folder, LearnerSettings(), 0)
    arrays = learner.logprobs([silent, row])
    assert not arrays[0].any() and arrays[1].any()
