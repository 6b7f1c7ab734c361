"""Finished trajectories on disk: used again only with the weights that sampled them, removed once trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock, TokenKind, Trajectory, Turn
from services.trainer.rollouts.finished_rollouts import FinishedRollout, FinishedRollouts

RUN = {"seed": "0", "questions": "abc"}
WEIGHTS = "f" * 64


def rollout(versions: tuple[int, ...] = (3, 3)) -> FinishedRollout:
    passage = Passage("d1", "Title", "text \u2028 é", {"world": "w0"})
    trajectory = Trajectory("q", answer=None, stop_reason="completed", documents=(passage,))
    trajectory.turns.append(Turn("<search>a</search>", "search", ("a", "b"), generate_seconds=0.1))
    trajectory.blocks.append(InformationBlock("a", (SearchResult(passage, 1 / 3, 1),), (1,), (1,)))
    trajectory.tokens.append_given([5, 6], TokenKind.PROMPT)
    count = len(versions)
    trajectory.tokens.append_sampled(range(count), [-1 / 3] * count, versions, [int(TokenKind.ACTION)] * count)
    return FinishedRollout(trajectory, 2, 1.25)


@contextmanager
def opened(
    folder: Path, *, lockstep: bool = True, run: dict[str, str] = RUN, weights: str = WEIGHTS
) -> Iterator[FinishedRollouts]:
    """The finished rollouts as one process of a run sees them, at policy version 3."""
    finished = FinishedRollouts(folder, lockstep=lockstep)
    finished.open(run)
    finished.serve(3, weights)
    yield finished
    finished.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in folder.glob("*"))


async def keep(folder: Path, *keys: tuple[int, int]) -> None:
    with opened(folder) as finished:
        for group_id, rollout_index in keys:
            await finished.keep(group_id, rollout_index, rollout())


async def test_a_later_process_reads_exactly_what_was_kept(tmp_path: Path) -> None:
    await keep(tmp_path, (7, 1))
    with opened(tmp_path) as finished:
        assert await finished.take(7, 1) == rollout()
        assert await finished.take(7, 0) is None


@pytest.mark.parametrize("other", [{"run": {**RUN, "seed": "1"}}, {"weights": "0" * 64}])
async def test_another_run_or_other_weights_do_not_use_it(tmp_path: Path, other: dict) -> None:
    await keep(tmp_path, (7, 1))
    with opened(tmp_path, **other) as finished:
        assert await finished.take(7, 1) is None


async def test_tokens_of_several_versions_are_not_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as finished:
        finished.serve(4, "another")
        await finished.keep(7, 0, rollout((3, 4)))
        await finished.keep(7, 1, rollout((3, 3)))
    assert files(tmp_path) == ["g000000007-r0001"]
    with opened(tmp_path) as finished:  # at version 3
        assert await finished.take(7, 1) == rollout()


@pytest.mark.parametrize("lockstep", [True, False])
async def test_in_lockstep_a_part_of_what_decodes_together_is_not_used(tmp_path: Path, lockstep: bool) -> None:
    await keep(tmp_path, (7, 0), (7, 1), (8, 0))
    with opened(tmp_path, lockstep=lockstep) as finished:
        finished.prepare([7, 8], group_size=2)
        assert (await finished.take(7, 0) is None) == lockstep
    assert files(tmp_path) == ([] if lockstep else ["g000000007-r0000", "g000000007-r0001", "g000000008-r0000"])


async def test_in_lockstep_a_complete_step_is_used_and_so_is_what_this_process_kept_itself(tmp_path: Path) -> None:
    await keep(tmp_path, (7, 0), (7, 1))
    with opened(tmp_path) as finished:
        finished.prepare([7], group_size=2)
        assert await finished.take(7, 0) == await finished.take(7, 1) == rollout()
        await finished.keep(8, 0, rollout())
        finished.prepare([8], group_size=2)  # a group that lost a member to an outage is restarted
        assert await finished.take(8, 0) == rollout()


async def test_what_was_trained_is_removed_and_a_complete_run_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "untrained"
    await keep(folder, (6, 0), (7, 0), (8, 0))
    (folder / "g000000009-r0000.part").write_bytes(b"half")
    with opened(folder) as finished:
        finished.keep_only(lambda group_id: group_id == 7)
    assert files(folder) == ["g000000007-r0000"]
    with opened(folder) as finished:
        finished.close(discard=True)
    assert not folder.exists()


async def test_a_damaged_file_means_that_the_rollout_is_sampled_again(tmp_path: Path) -> None:
    await keep(tmp_path, (7, 0))
    (path,) = tmp_path.glob("*")
    path.write_bytes(path.read_bytes()[:-20])
    with opened(tmp_path) as finished:
        assert await finished.take(7, 0) is None


async def test_a_disk_that_cannot_be_written_costs_no_rollout_and_is_counted(tmp_path: Path) -> None:
    blocked = tmp_path / "untrained"
    blocked.write_text("a file")
    failures: list[int] = []
    finished = FinishedRollouts(blocked, lockstep=True, count=lambda: failures.append(1))
    finished.open(RUN)
    finished.serve(3, WEIGHTS)
    await finished.keep(7, 0, rollout())
    assert await finished.take(7, 0) is None
    finished.close()
    assert failures == [1]
