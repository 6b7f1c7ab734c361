"""Computes what each search of a rollout adds to what the searcher has seen: a process reward."""

from collections.abc import Iterator, Sequence

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InformationBlock, Trajectory
from searchrl.rewards.span_match import contains_answer


def retrieval_gains(question: Question, trajectory: Trajectory) -> tuple[float | None, ...]:
    """Return the gain of each turn's search, between 0 and 1; None for turns whose search showed nothing.

    With gold passages, the gain is the share of them that this search shows for the first time; without, it is 1 if its
    documents contain a golden answer and none shown before did. The gains of a rollout add up to at most 1, so
    repeating a search earns nothing.

    Example with two gold passages: the initial documents have the first, the first search has both, and the second has
    the second again: the gains are 0.5 and 0.
    """
    shown = _blocks_of_turns(trajectory)
    if shown is None:
        return ()
    initial, by_turn = shown
    found = _evidence(question, initial)
    gains: list[float | None] = []
    for blocks in by_turn:
        if not blocks:
            gains.append(None)
            continue
        now = found | _evidence(question, blocks)
        gains.append((len(now) - len(found)) / max(1, len(question.gold_passage_ids)))
        found = now
    return tuple(gains)


def _evidence(question: Question, blocks: Sequence[InformationBlock]) -> frozenset[str]:
    """Gold passages among the documents; without gold passages, a single entry if a golden answer is in them."""
    passages = list(_passages(blocks))
    if question.gold_passage_ids:
        return frozenset(passage_id for passage_id, _ in passages) & frozenset(question.gold_passage_ids)
    answered = any(contains_answer(text, question.golden_answers) for _, text in passages)
    return frozenset({"answer"}) if answered else frozenset()


def _passages(blocks: Sequence[InformationBlock]) -> Iterator[tuple[str, str]]:
    for block in blocks:
        for result in block.results:
            yield result.passage.id, result.passage.contents


def _blocks_of_turns(
    trajectory: Trajectory,
) -> tuple[Sequence[InformationBlock], list[Sequence[InformationBlock]]] | None:
    """Return the initial blocks and those of each turn; None if other actions than searches wrote blocks, too."""
    # A search that is the last turn was not shown: else another turn would follow it.
    counts = [len(turn.queries) if turn.action == "search" else 0 for turn in trajectory.turns]
    if counts:
        counts[-1] = 0
    start = len(trajectory.blocks) - sum(counts)
    if start not in (0, 1):
        return None
    by_turn: list[Sequence[InformationBlock]] = []
    end = start
    for count in counts:
        by_turn.append(trajectory.blocks[end : end + count])
        end += count
    return trajectory.blocks[:start], by_turn
