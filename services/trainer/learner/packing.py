"""Packs rows into micro-batches of bounded size, with the same number of them on every rank.

A padded micro-batch is a rectangle of rows x longest row. With a budget of 4096 tokens, rows of 900, 1000, 1100 and
1300 tokens become two: three rows of up to 1100 tokens (3300), and the one of 1300, because 4 x 1300 is over the
budget.
"""

from collections.abc import Sequence

from services.trainer.learner.train_batch import TrainRow, padding_row

MicroRows = tuple[TrainRow, ...]


def pack_micro_batches(rows: Sequence[TrainRow], token_budget: int) -> list[MicroRows]:
    """Sort rows by length and cut them so that each rectangle holds at most ``token_budget`` tokens, padding included.

    Every row is in exactly one micro-batch; a row longer than the budget gets one of its own. The result depends on
    the set of rows only: equal lengths are ordered by key.
    """
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
