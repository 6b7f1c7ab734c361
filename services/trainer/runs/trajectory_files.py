"""Writes a step's rollouts to a parquet file, from which they can be read, replayed and used as demonstrations."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from searchrl.domain.trajectory import NO_REWARD, Reward, Trajectory
from searchrl.storage.durable_files import atomic_path
from services.trainer.rollouts.group import Group, Rollout

TOKENIZER_KEY = b"tokenizer"
"""Key of the file's metadata with the SHA-256 of the tokenizer: ids mean nothing to another one."""
# A fixed schema, because Arrow would infer another type for a column whose values in one step are all empty or None,
# and readers could not open the files of several steps as one table.
SCHEMA = pa.schema(
    [
        ("step", pa.int32()), ("group_id", pa.int64()), ("rollout_index", pa.int32()), ("question_id", pa.string()),
        ("question", pa.string()), ("outcome", pa.string()), ("reason", pa.string()), ("reward", pa.float64()),
        ("reward_parts", pa.string()), ("turn_rewards", pa.list_(pa.float64())),
        ("stop_reason", pa.string()), ("well_formed", pa.bool_()),
        ("answer", pa.string()), ("turn_texts", pa.list_(pa.string())), ("queries", pa.list_(pa.string())),
        ("document_ids", pa.list_(pa.string())), ("attempts", pa.int32()), ("rollout_seconds", pa.float64()),
        ("ids", pa.list_(pa.int32())), ("mask", pa.list_(pa.bool_())), ("logprobs", pa.list_(pa.float32())),
        ("versions", pa.list_(pa.int32())), ("kinds", pa.list_(pa.int16())),
    ]
)  # fmt: skip


def write_trajectories(path: Path, step: int, groups: Sequence[Group], tokenizer: str) -> None:
    """Write every rollout of the groups, failed ones included, to one file; readers never see an incomplete one.

    Args:
        tokenizer: SHA-256 of the tokenizer of the model that sampled them.
    """
    rows = [_to_row(step, group, rollout) for group in groups for rollout in group.rollouts]
    # Not flushed: no resume reads these files, so a power cut costs only the analysis of a step. One process writes
    # them, the holder of the run's lock.
    with atomic_path(path, durable=False, unique=False) as part:
        schema = SCHEMA.with_metadata({TOKENIZER_KEY: tokenizer.encode()})
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd")


def _to_row(step: int, group: Group, rollout: Rollout) -> dict[str, object]:
    outcome = rollout.outcome
    trajectory = rollout.trajectory or Trajectory(group.prompt.question.id)
    tokens = trajectory.tokens
    return {
        "step": step,
        "group_id": group.prompt.group_id,
        "rollout_index": rollout.rollout_index,
        "question_id": group.prompt.question.id,
        "question": group.prompt.question.text,
        "outcome": type(outcome).__name__,
        "reason": "" if isinstance(outcome, Reward) else outcome.reason,
        "reward": rollout.value,
        "reward_parts": "{}" if isinstance(outcome, NO_REWARD) else json.dumps(dict(outcome.parts)),
        "turn_rewards": list(rollout.turn_rewards),
        "stop_reason": trajectory.stop_reason,
        "well_formed": trajectory.well_formed,
        "answer": trajectory.answer,
        "turn_texts": [turn.text for turn in trajectory.turns],
        "queries": [query for turn in trajectory.turns for query in turn.queries],
        "document_ids": [passage.id for passage in trajectory.documents],
        "attempts": rollout.attempts,
        "rollout_seconds": rollout.rollout_seconds,
        "ids": tokens.ids,
        "mask": tokens.mask,
        "logprobs": tokens.logprobs,
        "versions": tokens.versions,
        "kinds": tokens.kinds,
    }
