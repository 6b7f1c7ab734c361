"""The learner's input: rows of tokens with a mask, behavior log-probabilities and advantages per token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from searchrl.domain.trajectory import NOT_SAMPLED, TokenRecord, Trajectory
from services.trainer.losses.aggregation import Denominators, RowCount

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
PADDING_GROUP = -1
"""Groups are numbered from 0, so a padding row never has the key of a real one."""


class RowKey(NamedTuple):
    """Which group, which rollout of it, and which part of the rollout a row is. Rows are sorted by it."""

    group_id: int
    rollout_index: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One token sequence and everything the loss needs; every array has one entry per token of ``token_ids``.

    Attributes:
        mask: True where the policy sampled the token; only those tokens have a loss.
        behavior_logprobs: log-probability in nats under the policy that sampled the token, after temperature.
        versions: policy version that sampled the token; -1 elsewhere.
        kinds: ``searchrl.domain.trajectory.TokenKind`` of the token.
        advantages: in reward units; the loss weight in supervised training.
        weight: factor of the row's loss; 0 removes the row from the loss and from every count.
        temperature: what the sampler divided its logits by; the learner does the same.
        proximal_logprobs: the policy before the first mini-batch of the step, for a decoupled ratio.
        reference_logprobs: the frozen policy of the KL term.
        values_old, returns: the critic's prediction at sampling time and its target.
    """

    key: RowKey
    token_ids: IntArray
    mask: BoolArray
    behavior_logprobs: FloatArray
    versions: IntArray
    kinds: IntArray
    advantages: FloatArray
    weight: float = 1.0
    temperature: float = 1.0
    proximal_logprobs: FloatArray | None = None
    reference_logprobs: FloatArray | None = None
    values_old: FloatArray | None = None
    returns: FloatArray | None = None

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        arrays = (
            self.mask, self.behavior_logprobs, self.versions, self.kinds, self.advantages,
            self.proximal_logprobs, self.reference_logprobs, self.values_old, self.returns,
        )  # fmt: skip
        if any(array is not None and len(array) != length for array in arrays):
            raise ValueError(f"row {tuple(self.key)}: every array must have {length} entries, one per token")
        if length and self.mask[0]:
            raise ValueError(f"row {tuple(self.key)}: the first token has no context, so it cannot be trained")
        if self.temperature <= 0:
            raise ValueError(f"row {tuple(self.key)}: temperature must be above 0 in training, got {self.temperature}")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def trainable_tokens(self) -> int:
        """Number of tokens with a loss."""
        return int(self.mask.sum())

    @property
    def oldest_version(self) -> int:
        """Version of the oldest token; -1 if nothing was sampled."""
        return int(self.versions[self.mask].min()) if self.mask.any() else NOT_SAMPLED

    def count(self) -> RowCount:
        """The row's share in the global denominators."""
        return RowCount(
            self.key.group_id, (self.key.group_id, self.key.rollout_index), self.trainable_tokens, self.weight
        )


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """The rows of one optimizer step, sorted by key, and the counts that normalize their loss.

    With several ranks, each rank gets its own rows and the denominators of all rows.
    """

    rows: tuple[TrainRow, ...]
    denominators: Denominators
    step: int = 0

    @classmethod
    def of(cls, rows: Iterable[TrainRow], step: int = 0) -> "TrainBatch":
        """Sort the rows, so that the order of arrival cannot matter, and count them.

        Raises:
            ValueError: two rows have the same key.
        """
        # Rollouts finish in an order that depends on the services. Sorted, equal rows give equal micro-batches and sums
        # in the same order, so equal bits.
        ordered = tuple(sorted(rows, key=lambda row: row.key))
        keys = {row.key for row in ordered}
        if len(keys) != len(ordered):
            raise ValueError(f"{len(ordered) - len(keys)} rows have the key of another row")
        return cls(ordered, Denominators.count([row.count() for row in ordered]), step)

    def split(self, mini_batches: int) -> list["TrainBatch"]:
        """Distribute the rows round-robin over batches of one optimizer step each; empty ones are omitted."""
        # The rows are sorted by group, so round-robin gives each mini-batch a part of every group, and no optimizer
        # step depends on a few questions only. Each part is normalized by its own counts.
        parts = (self.rows[index::mini_batches] for index in range(mini_batches))
        return [TrainBatch.of(part, self.step) for part in parts if part]

    def with_rows(self, rows: Sequence[TrainRow]) -> "TrainBatch":
        """The same step and denominators with other rows, e.g. one rank's share."""
        return replace(self, rows=tuple(rows))


@dataclass(frozen=True, slots=True)
class ScoredTrajectory:
    """A trajectory with its place in the run and its advantage: one number, or one per sampled token.

    ``parts`` replaces the trajectory's own tokens where a rollout became several rows (rewritten histories).
    """

    trajectory: Trajectory
    group_id: int
    rollout_index: int
    advantage: float | Sequence[float]
    weight: float = 1.0
    parts: tuple[TokenRecord, ...] = ()


def rows_from_trajectories(scored: Iterable[ScoredTrajectory], temperature: float = 1.0) -> list[TrainRow]:
    """Turn scored trajectories into rows; a rollout of several parts becomes several rows of the same rollout.

    Raises:
        ValueError: an advantage per token was given, but not for every sampled token.
    """
    rows: list[TrainRow] = []
    for item in scored:
        records = item.parts or (item.trajectory.tokens,)
        # Advantages per token are one sequence for the rollout; each part takes as many as it has sampled tokens.
        remaining = item.advantage if isinstance(item.advantage, (int, float)) else list(item.advantage)
        for part, record in enumerate(records):
            row = row_from_record(
                record, RowKey(item.group_id, item.rollout_index, part), 0.0, item.weight, temperature
            )
            sampled = row.trainable_tokens
            if isinstance(remaining, list):
                values, remaining = remaining[:sampled], remaining[sampled:]
                if len(values) != sampled:
                    raise ValueError(
                        f"group {item.group_id}, rollout {item.rollout_index}: fewer advantages than sampled tokens"
                    )
            else:
                values = [remaining] * sampled
            rows.append(replace(row, advantages=scatter(row.mask, values)))
        if isinstance(remaining, list) and remaining:
            raise ValueError(
                f"group {item.group_id}, rollout {item.rollout_index}: more advantages than sampled tokens"
            )
    return rows


def find_turns(mask: BoolArray, turns: int) -> list[slice] | None:
    """Return the sampled tokens of each turn, a run of the mask each; None if there is another number of runs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    runs = [slice(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return runs if len(runs) == turns else None


def row_from_record(
    record: TokenRecord, key: RowKey, advantage: float = 0.0, weight: float = 1.0, temperature: float = 1.0
) -> TrainRow:
    """Copy a token record into a row with one advantage for all of its sampled tokens."""
    mask = np.asarray(record.mask, dtype=np.bool_)
    return TrainRow(
        key=key,
        token_ids=np.asarray(record.ids, dtype=np.int64),
        mask=mask,
        behavior_logprobs=np.asarray(record.logprobs, dtype=np.float32),
        versions=np.asarray(record.versions, dtype=np.int64),
        kinds=np.asarray(record.kinds, dtype=np.int64),
        advantages=np.where(mask, np.float32(advantage), np.float32(0.0)),
        weight=weight,
        temperature=temperature,
    )


def scatter(mask: BoolArray, values: Sequence[float] | FloatArray) -> FloatArray:
    """Place one value per trainable token at its position; 0 elsewhere."""
    full = np.zeros(len(mask), dtype=np.float32)
    full[mask] = values
    return full


def padding_row() -> TrainRow:
    """A row without any loss, for ranks that would otherwise run fewer micro-batches than the others."""
    zeros = np.zeros(2, dtype=np.float32)
    ids = np.zeros(2, dtype=np.int64)
    return TrainRow(
        key=RowKey(PADDING_GROUP, 0),
        token_ids=ids,
        mask=ids.astype(np.bool_),
        behavior_logprobs=zeros,
        versions=ids + NOT_SAMPLED,
        kinds=ids,
        advantages=zeros,
        weight=0.0,
        proximal_logprobs=zeros,
        reference_logprobs=zeros,
        values_old=zeros,
        returns=zeros,
    )


def probe_row(ids: Sequence[int]) -> TrainRow:
    """Return a row that scores every token but the first at temperature 1; it is never trained."""
    size = len(ids)
    zeros = np.zeros(size, np.float32)
    return TrainRow(
        RowKey(PADDING_GROUP, 0),
        np.asarray(ids, np.int64),
        mask=np.arange(size) > 0,
        behavior_logprobs=zeros,
        versions=np.full(size, NOT_SAMPLED),
        kinds=np.zeros(size, np.int64),
        advantages=zeros,
    )
