"""Converts trajectories, with their turns, documents and tokens, between the domain and the wire.

The wire loses three things: log-probabilities become 32-bit floats, a turn's timings are not sent, and an empty answer
arrives as None.
"""

from searchrl.contracts.v1 import trajectory_pb2 as pb
from searchrl.domain.trajectory import InformationBlock, TokenRecord, Trajectory, Turn
from searchrl.wire.record_codec import passage_from_wire, passage_to_wire, result_to_wire, results_from_wire


def tokens_to_wire(tokens: TokenRecord) -> pb.TokenRecord:
    return pb.TokenRecord(
        ids=tokens.ids,
        mask=tokens.mask,
        logprobs=tokens.logprobs,
        versions=tokens.versions,
        kinds=tokens.kinds,
    )


def tokens_from_wire(message: pb.TokenRecord) -> TokenRecord:
    """Read the parallel arrays.

    Raises:
        ValueError: the arrays differ in length.
    """
    record = TokenRecord(
        ids=list(message.ids),
        mask=list(message.mask),
        logprobs=list(message.logprobs),
        versions=list(message.versions),
        kinds=list(message.kinds),
    )
    # The domain class does not check its constructor's arguments, and every reader of a record assumes parallel arrays.
    lengths = {len(record.ids), len(record.mask), len(record.logprobs), len(record.versions), len(record.kinds)}
    if len(lengths) != 1:
        raise ValueError(f"token arrays differ in length: {sorted(lengths)}")
    return record


def block_to_wire(block: InformationBlock) -> pb.InformationBlock:
    return pb.InformationBlock(
        query=block.query,
        results=map(result_to_wire, block.results),
        selection=block.selection or (),
        # A repeated field has no presence in proto3: an empty selection and none are the same list, so a flag tells
        # them apart.
        claimed=block.selection is not None,
        cut=block.cut,
    )


def block_from_wire(message: pb.InformationBlock) -> InformationBlock:
    return InformationBlock(
        query=message.query,
        results=tuple(results_from_wire(message.results)),
        selection=tuple(message.selection) if message.claimed else None,
        cut=tuple(message.cut),
    )


def turn_to_wire(turn: Turn) -> pb.Turn:
    return pb.Turn(
        text=turn.text,
        action=turn.action,
        queries=turn.queries,
        well_formed=turn.well_formed,
        finish_reason=turn.finish_reason,
    )


def turn_from_wire(message: pb.Turn) -> Turn:
    return Turn(
        text=message.text,
        action=message.action,
        queries=tuple(message.queries),
        well_formed=message.well_formed,
        finish_reason=message.finish_reason,
    )


def trajectory_to_wire(trajectory: Trajectory) -> pb.Trajectory:
    return pb.Trajectory(
        question_id=trajectory.question_id,
        tokens=tokens_to_wire(trajectory.tokens),
        turns=map(turn_to_wire, trajectory.turns),
        blocks=map(block_to_wire, trajectory.blocks),
        documents=map(passage_to_wire, trajectory.documents),
        answer=trajectory.answer or "",
        stop_reason=trajectory.stop_reason,
        well_formed=trajectory.well_formed,
    )


def trajectory_from_wire(message: pb.Trajectory) -> Trajectory:
    return Trajectory(
        question_id=message.question_id,
        tokens=tokens_from_wire(message.tokens),
        turns=[turn_from_wire(turn) for turn in message.turns],
        blocks=[block_from_wire(block) for block in message.blocks],
        documents=tuple(passage_from_wire(document) for document in message.documents),
        answer=message.answer or None,
        stop_reason=message.stop_reason,
        well_formed=message.well_formed,
    )
