"""Packs rows into micro-batches of bounded size and builds the tensors of one forward pass.

This is the only place where targets are shifted: the token at position t is predicted by the hidden state at t - 1. A
row with the mask [0, 0, 1, 1, 0, 1] has N = 3 targets at columns 2, 3 and 5, predictor columns 1, 2 and 4, and the
actions 0, 0 and 1.

A padded micro-batch is a rectangle of rows x longest row. With a budget of 4096 tokens, rows of 900, 1000, 1100 and
1300 tokens become two: three rows of up to 1100 tokens (3300), and the one of 1300, because 4 x 1300 is over the
budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.trainer.learner.train_batch import FloatArray, IntArray, TrainRow, padding_row

PADDING_ID = 0
"""Any valid id would do: padding stands right of a row's tokens, where causal attention never looks."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded rows, or the same rows end to end in one, and the N trainable tokens in row-major order.

    Shapes: B rows of T tokens; causal attention makes right padding invisible to the tokens before it, so padded rows
    need no attention mask. Packed rows restart ``position_ids`` at 0, which gives a block-diagonal mask.

    Attributes:
        token_ids: [B, T].
        position_ids: [1, T] for packed rows, else None.
        predictor_rows, predictor_columns: [N] where the hidden state stands that predicts each trainable token.
        targets: [N] the trainable tokens.
        rows: [N] index of each token's row in ``source``.
        actions: [N] index of each token's run of consecutive trainable tokens.
        columns: [N] position of each token in its own row.
        temperatures: [N].
    """

    source: tuple[TrainRow, ...]
    token_ids: Tensor
    position_ids: Tensor | None
    predictor_rows: Tensor
    predictor_columns: Tensor
    targets: Tensor
    rows: Tensor
    actions: Tensor
    columns: Tensor
    temperatures: Tensor

    def gather(self, arrays: Sequence[FloatArray] | Sequence[IntArray]) -> Tensor:
        """Values of the trainable tokens, from one array per row. Shape: [N]."""
        values = [array[row.mask] for row, array in zip(self.source, arrays, strict=True)]
        return torch.from_numpy(np.concatenate(values)).to(self.token_ids.device)

    def scatter(self, values: Tensor) -> list[FloatArray]:
        """One full-length array per row, with the values of the trainable tokens in place and 0 elsewhere."""
        flat = values.detach().float().cpu().numpy()
        full: list[FloatArray] = []
        start = 0
        for row in self.source:
            array = np.zeros(len(row), dtype=np.float32)
            end = start + row.trainable_tokens
            array[row.mask] = flat[start:end]
            full.append(array)
            start = end
        return full


def build_micro_batch(rows: Sequence[TrainRow], device: torch.device, packed: bool = False) -> MicroBatch:
    """Lay out rows for one forward pass, padded or (``packed``) end to end."""
    columns = [np.flatnonzero(row.mask) for row in rows]
    counts = np.array([len(c) for c in columns])
    row_index = np.repeat(np.arange(len(rows)), counts)
    flat_columns = np.concatenate(columns) if rows else np.zeros(0, dtype=np.int64)
    starts_action = np.ones(len(flat_columns), dtype=np.bool_)
    # a new action starts behind a gap in the mask, and with every row
    starts_action[1:] = (np.diff(flat_columns) != 1) | (np.diff(row_index) != 0)
    targets = np.concatenate([row.token_ids[c] for row, c in zip(rows, columns, strict=True)])
    temperatures = np.repeat(np.array([row.temperature for row in rows], dtype=np.float32), counts)
    # ``flat_columns - 1`` below is never -1, which would index from the end: TrainRow refuses a trainable first token.
    if packed:
        # Transformers finds the rows by their restarting positions and masks across them, but only without an attention
        # mask and without a cache, as ``hidden_states`` calls it.
        offsets = np.cumsum([0, *(len(row) for row in rows)])[:-1]
        token_ids = np.concatenate([row.token_ids for row in rows])[None]
        positions = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows])[None]).to(device)
        predictor_rows, predictor_columns = np.zeros_like(row_index), flat_columns - 1 + offsets[row_index]
    else:
        token_ids = np.full((len(rows), max(len(row) for row in rows)), PADDING_ID, dtype=np.int64)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row.token_ids
        positions = None
        predictor_rows, predictor_columns = row_index, flat_columns - 1

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return MicroBatch(
        source=tuple(rows),
        token_ids=tensor(token_ids),
        position_ids=positions,
        predictor_rows=tensor(predictor_rows),
        predictor_columns=tensor(predictor_columns),
        targets=tensor(targets),
        rows=tensor(row_index),
        actions=tensor(np.cumsum(starts_action) - 1),
        columns=tensor(flat_columns),
        temperatures=tensor(temperatures),
    )


MicroRows = tuple[TrainRow, ...]


def pack_micro_batches(rows: Sequence[TrainRow], token_budget: int) -> list[MicroRows]:
    """Sort rows by length and cut them so that each rectangle holds at most ``token_budget`` tokens, padding included.

    Every row is in exactly one micro-batch; a row longer than the budget gets one of its own. The result depends on
    the set of rows only: equal lengths are ordered by key.
    """
    # Rows come in ascending order, so the row that is added is the longest: its length is the width of the rectangle.
    micro_batches: list[MicroRows] = []
    current: list[TrainRow] = []
    for row in sorted(rows, key=lambda row: (len(row), row.key)):
        if current and (len(current) + 1) * len(row) > token_budget:
            micro_batches.append(tuple(current))
            current = []
        current.append(row)
    if current:
        micro_batches.append(tuple(current))
    return micro_batches


def shard_rows(rows: Sequence[TrainRow], ranks: int) -> list[list[TrainRow]]:
    """Give every rank a share of about equal length, longest rows first to the least loaded rank."""
    # All ranks wait for the slowest at the optimizer step. This greedy rule (Graham 1969) gives no rank more than 4/3
    # of the best possible maximum: rows of 9, 7, 6, 5 and 3 tokens on two ranks become 9 + 5 and 7 + 6 + 3.
    shares: list[list[TrainRow]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in sorted(rows, key=lambda row: (-len(row), row.key)):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += len(row)
    return shares


def pack_for_ranks(rows: Sequence[TrainRow], ranks: int, token_budget: int) -> list[list[MicroRows]]:
    """Pack each rank's share, and add padding rows until every rank has the same number of micro-batches."""
    grid = [pack_micro_batches(share, token_budget) for share in shard_rows(rows, ranks)]
    height = max(len(column) for column in grid)
    return [column + [(padding_row(),)] * (height - len(column)) for column in grid]
