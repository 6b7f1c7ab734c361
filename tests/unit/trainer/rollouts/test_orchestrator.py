"""The orchestrator: dispatch, staleness, outages and resume.

Staleness counts from the oldest token of a group and includes its time in the queue; an infrastructure failure is never
a reward of 0; an outage pauses dispatch and loses no task; across a resume every group is trained exactly once.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Reward, Unscorable
from searchrl.errors import ConfigurationError, Unauthenticated, Unavailable
from services.trainer.engines.base import RolloutEngine
from services.trainer.rollouts.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from services.trainer.rollouts.group import Group, RolloutSettings
from services.trainer.rollouts.orchestrator import Orchestrator, OrchestratorState
from services.trainer.rollouts.rollout_worker import RolloutWorker
from services.trainer.rollouts.task_source import TaskSource
from tests.fakes.scripted_worker import CountingObserver, RecordingSessions, ScriptedWorker

DOWN = InfraFailure("retriever: unavailable")


class Probe:
    """Fails until ``well`` is set."""

    def __init__(self) -> None:
        self.well = False
        self.tries = 0
        self.error: Exception = Unavailable("down")

    async def __call__(self) -> None:
        self.tries += 1
        if not self.well:
            raise self.error


class Setup:
    """An orchestrator over ten questions with scripted rollouts."""

    def __init__(
        self, worker: ScriptedWorker, state: OrchestratorState | None = None, max_replaced: int = 0, **settings
    ) -> None:
        chosen = RolloutSettings(**{"groups_per_step": 2, "group_size": 2, **settings})
        questions = [Question(f"q{number}", f"text {number}", ("a",)) for number in range(10)]
        self.worker, self.sessions, self.observer = worker, RecordingSessions(), CountingObserver()
        self.source = TaskSource(questions, seed=3)
        self.probe = Probe()
        self.breaker = CircuitBreaker(
            self.probe, CircuitBreakerSettings(failure_ratio=0.5, window=4, probe_seconds=0.001)
        )
        self.orchestrator = Orchestrator(
            self.source,
            cast(RolloutWorker, worker),
            cast(RolloutEngine, self.sessions),
            chosen,
            self.breaker,
            max_replaced=max_replaced,
            on_rollout=self.observer.record_rollout,
            on_lost_group=self.observer.record_group,
        )
        if state is not None:
            self.orchestrator.restore(state)

    def publish(self, version: int) -> None:
        self.worker.version = version
        self.orchestrator.grant_step(version)


@asynccontextmanager
async def running(setup: Setup) -> AsyncIterator[Setup]:
    setup.orchestrator.start(0)
    try:
        yield setup
    finally:
        await setup.orchestrator.close()


def group_ids(groups: Sequence[Group]) -> list[int]:
    return [group.prompt.group_id for group in groups]


async def settle() -> None:
    """Let every task run until it waits; twenty turns of the loop suffice for every chain of tasks here."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("stale_groups", ["wait", "drop"])
async def test_without_staleness_a_step_starts_only_after_the_weights_before_it_are_served(stale_groups: str) -> None:
    async with running(Setup(ScriptedWorker(), stale_groups=stale_groups)) as setup:
        assert group_ids(await setup.orchestrator.next_groups()) == [0, 1]
        await settle()
        assert {group_id for group_id, _ in setup.worker.started} == {0, 1}
        setup.publish(1)
        groups = await setup.orchestrator.next_groups()
    assert group_ids(groups) == [2, 3]
    assert {group.oldest_version for group in groups} == {1}


async def test_with_staleness_one_the_next_step_is_sampled_while_this_one_trains() -> None:
    async with running(Setup(ScriptedWorker(), max_staleness=1)) as setup:
        await setup.orchestrator.next_groups()
        await settle()
        assert {group_id for group_id, _ in setup.worker.started} == {0, 1, 2, 3}
        setup.publish(1)
        groups = await setup.orchestrator.next_groups()
        assert {1 - group.oldest_version for group in groups} == {1}
        await settle()
        assert {group_id for group_id, _ in setup.worker.started} == {0, 1, 2, 3, 4, 5}


async def test_all_sessions_of_a_step_are_open_before_its_first_rollout_asks_for_tokens() -> None:
    async with running(Setup(ScriptedWorker(held=[(0, 0)]))) as setup:
        await settle()
        assert setup.sessions.most_live == 4
        setup.worker.release((0, 0))
        await setup.orchestrator.next_groups()
        assert setup.sessions.live == set()


async def test_a_slow_group_beyond_the_bound_is_dropped_and_starts_again() -> None:
    async with running(Setup(ScriptedWorker(held=[(0, 0)]), max_staleness=1, stale_groups="drop")) as setup:
        assert group_ids(await setup.orchestrator.next_groups()) == [1, 2]
        setup.publish(1)
        assert group_ids(await setup.orchestrator.next_groups()) == [3, 4]
        setup.publish(2)
        setup.worker.release((0, 0))  # its other tokens are from version 0: age 2 by now
        await settle()
        assert group_ids(await setup.orchestrator.next_groups()) == [5, 6]
        setup.publish(3)
        groups = await setup.orchestrator.next_groups()
        assert group_ids(groups) == [0, 7]
        assert groups[0].oldest_version >= 2
        assert setup.observer.groups == ["stale"]
        assert setup.worker.started.count((0, 1)) == 2


async def test_the_learner_waits_and_trains_the_slow_group_in_time() -> None:
    worker = ScriptedWorker(held=[(0, 0)])
    async with running(Setup(worker, max_staleness=1)) as setup:
        assert group_ids(await setup.orchestrator.next_groups()) == [1, 2]
        setup.publish(1)
        waiting = asyncio.create_task(setup.orchestrator.next_groups())
        await settle()
        assert not waiting.done()
        setup.worker.release((0, 0))
        groups = await waiting
        assert 0 in group_ids(groups)
        assert max(1 - group.oldest_version for group in groups) == 1


async def test_an_infrastructure_failure_is_in_no_statistic_and_never_counts_as_zero() -> None:
    worker = ScriptedWorker()
    worker.outcomes[(0, 1)] = [DOWN]
    async with running(Setup(worker, group_size=4)) as setup:
        groups = await setup.orchestrator.next_groups()
    assert groups[0].rewards == [0.0, None, 2.0, 3.0]
    assert setup.observer.rollouts.count("InfraFailure") == 1


async def test_a_group_with_too_few_members_starts_again_with_the_same_question() -> None:
    worker = ScriptedWorker()
    worker.outcomes[(1, 0)] = [DOWN]
    async with running(Setup(worker)) as setup:
        setup.probe.well = True
        groups = await setup.orchestrator.next_groups()
    assert group_ids(groups) == [0, 1]
    assert setup.probe.tries == 1  # nothing is restarted before the services answer
    assert all(group.usable == 2 for group in groups)
    assert setup.observer.groups == ["underfilled"]


async def test_an_outage_pauses_dispatch_and_loses_no_task() -> None:
    worker = ScriptedWorker()
    for group_id in (0, 1):
        for rollout_index in (0, 1):
            worker.outcomes[(group_id, rollout_index)] = [DOWN]
    async with running(Setup(worker)) as setup:
        step = asyncio.create_task(setup.orchestrator.next_groups())
        while setup.probe.tries < 3:
            await asyncio.sleep(0.001)
        assert setup.breaker.is_open
        assert not step.done()
        assert len(setup.worker.started) == 4  # no rollout was started during the outage
        setup.probe.well = True
        assert group_ids(await step) == [0, 1]
    assert setup.breaker.outages == 1


async def test_a_bug_in_a_rollout_stops_the_run_instead_of_waiting_for_ever() -> None:
    class Broken(ScriptedWorker):
        async def run_rollout(self, prompt, rollout_index, on_generated):
            raise ZeroDivisionError("a bug")

    async with running(Setup(Broken())) as setup:
        with pytest.raises(ZeroDivisionError):
            await setup.orchestrator.next_groups()


async def test_a_bug_in_a_rollout_ends_the_other_rollouts_of_its_group() -> None:
    class Broken(ScriptedWorker):
        ended = 0

        async def run_rollout(self, prompt, rollout_index, on_generated):
            if rollout_index == 1:
                raise ZeroDivisionError("a bug")
            try:
                return await super().run_rollout(prompt, rollout_index, on_generated)
            finally:
                await asyncio.sleep(0)
                self.ended += 1

    worker = Broken(held=[(0, 0), (0, 2)])
    async with running(Setup(worker, group_size=3, groups_per_step=1)) as setup:
        with pytest.raises(ZeroDivisionError):
            await setup.orchestrator.next_groups()
    assert worker.ended == 2


async def test_a_bug_in_the_dispatch_ends_the_run_at_once() -> None:
    class Broken(ScriptedWorker):
        def prepare(self, prompts, group_size):
            raise ZeroDivisionError("a bug")

    async with running(Setup(Broken())) as setup:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(setup.orchestrator.next_groups(), 2)


@pytest.mark.parametrize("staleness", [0, 1, 2])
async def test_every_group_is_trained_exactly_once_across_a_resume(staleness: int) -> None:
    trained: list[int] = []
    async with running(Setup(ScriptedWorker(), max_staleness=staleness)) as first:
        for version in range(1, 4):
            trained += group_ids(await first.orchestrator.next_groups())
            first.publish(version)
            await settle()
        state = first.orchestrator.state()
    assert state.next_group_id == 2 * (3 + 1 + staleness)
    async with running(Setup(ScriptedWorker(), state, max_staleness=staleness)) as second:
        for version in range(4, 8):
            trained += group_ids(await second.orchestrator.next_groups())
            second.publish(version)
    assert sorted(trained) == list(range(14))


async def test_the_order_of_a_batch_is_that_of_its_groups_however_they_finish() -> None:
    worker = ScriptedWorker(held=[(0, 0), (1, 0), (2, 0)])
    async with running(Setup(worker, groups_per_step=3)) as setup:
        await settle()
        for group_id in (2, 0, 1):
            worker.release((group_id, 0))
            await settle()
        groups = await setup.orchestrator.next_groups()
    assert group_ids(groups) == [0, 1, 2]
    assert [rollout.rollout_index for rollout in groups[0].rollouts] == [0, 1]


REFUSED = Unscorable("reward: invalid: the judge cannot be read")


async def test_a_question_that_is_refused_is_left_out_and_another_takes_its_place() -> None:
    worker = ScriptedWorker()
    async with running(Setup(worker, max_unscorable=0.3)) as setup:
        bad = setup.source.group(1).question.id
        worker.outcomes |= {(1, 0): [REFUSED], (1, 1): [REFUSED]}
        trained = [await setup.orchestrator.next_groups()]
        for version in range(1, 9):
            setup.publish(version)
            trained.append(await setup.orchestrator.next_groups())
        state = setup.orchestrator.state()
    asked = [group.prompt.question.id for groups in trained for group in groups]
    assert bad not in asked and len(asked) == 18  # two groups of each of the nine others
    assert setup.observer.groups == ["unscorable"]
    assert dict(state.left_out) == {bad: REFUSED.reason}
    async with running(Setup(ScriptedWorker(), state)) as resumed:
        later = await resumed.orchestrator.next_groups()
    assert bad not in {group.prompt.question.id for group in later}


async def test_one_refused_member_does_not_cost_its_group() -> None:
    worker = ScriptedWorker()
    worker.outcomes[(0, 1)] = [REFUSED]
    async with running(Setup(worker, group_size=4)) as setup:
        groups = await setup.orchestrator.next_groups()
    assert groups[0].rewards == [0.0, None, 2.0, 3.0] and setup.observer.groups == []


@pytest.mark.parametrize(
    ("in_a_row", "match"), [(3, "3 questions in a row"), (100, "more than the 3 that may be left")]
)
async def test_a_run_whose_questions_are_refused_ends_with_the_reason(in_a_row: int, match: str) -> None:
    worker = ScriptedWorker()
    for group_id in range(10):
        worker.outcomes |= {(group_id, rollout_index): [REFUSED] for rollout_index in range(2)}
    async with running(Setup(worker, unscorable_in_a_row=in_a_row, max_unscorable=0.3)) as setup:
        with pytest.raises(ConfigurationError, match=match) as caught:
            await asyncio.wait_for(setup.orchestrator.next_groups(), 10)
    assert REFUSED.reason in str(caught.value)
    assert len(setup.worker.started) <= 20


async def test_a_group_that_infrastructure_fails_again_and_again_ends_the_run() -> None:
    worker = ScriptedWorker()
    worker.outcomes[(1, 0)] = [DOWN] * 100
    async with running(Setup(worker, max_restarts=4)) as setup:
        setup.probe.well = True
        with pytest.raises(Unavailable, match=r"@1 failed in each of 5 starts: retriever: unavailable"):
            await asyncio.wait_for(setup.orchestrator.next_groups(), 10)
    assert worker.started.count((1, 0)) == 5


async def test_a_run_in_which_no_rollout_ends_fails_and_reports_what_the_rollouts_wait_for() -> None:
    worker = ScriptedWorker(held=[(0, 0)])
    worker.stages = {"v0-s0": "a reward"}
    async with running(Setup(worker, stall_seconds=0.05)) as setup:
        with pytest.raises(Unavailable, match=r"1 groups run \(the oldest are 0\); rollouts wait: 1 for a reward"):
            await asyncio.wait_for(setup.orchestrator.next_groups(), 10)


async def test_an_outage_that_does_not_end_ends_the_run_with_its_reason() -> None:
    worker = ScriptedWorker()
    for group_id in (0, 1):
        worker.outcomes |= {(group_id, rollout_index): [DOWN] for rollout_index in (0, 1)}
    async with running(Setup(worker, stall_seconds=0.05)) as setup:
        with pytest.raises(Unavailable, match="dispatch is paused, down"):
            await asyncio.wait_for(setup.orchestrator.next_groups(), 10)


@pytest.mark.parametrize(
    ("error", "raised"), [(Unauthenticated("unknown key"), ConfigurationError), (ValueError("unknown key"), ValueError)]
)
async def test_a_probe_that_is_refused_or_has_a_bug_ends_the_run(error: Exception, raised: type[Exception]) -> None:
    worker = ScriptedWorker()
    for group_id in (0, 1):
        worker.outcomes |= {(group_id, rollout_index): [DOWN] for rollout_index in (0, 1)}
    async with running(Setup(worker)) as setup:
        setup.probe.error = error
        with pytest.raises(raised, match="unknown key"):
            await asyncio.wait_for(setup.orchestrator.next_groups(), 2)
        assert setup.breaker.is_open


async def test_one_question_at_least_is_left_to_train_on() -> None:
    worker = ScriptedWorker()
    for group_id in range(40):
        worker.outcomes |= {(group_id, rollout_index): [REFUSED] for rollout_index in range(2)}
    async with running(Setup(worker, unscorable_in_a_row=100, max_unscorable=1.0)) as setup:
        with pytest.raises(ConfigurationError, match=r"10 questions in a row|more than the 9"):
            await asyncio.wait_for(setup.orchestrator.next_groups(), 10)


async def test_an_outage_that_begins_with_the_run_is_waited_for_however_few_rollouts_run() -> None:
    worker = ScriptedWorker()
    worker.outcomes |= {(0, rollout_index): [DOWN] * 50 for rollout_index in range(2)}
    async with running(Setup(worker, groups_per_step=1, max_restarts=3)) as setup:
        step = asyncio.create_task(setup.orchestrator.next_groups())
        while setup.probe.tries < 20:
            await asyncio.sleep(0.001)
        assert not step.done() and len(worker.started) == 2
        worker.outcomes.clear()
        setup.probe.well = True
        assert group_ids(await asyncio.wait_for(step, 10)) == [0]


@pytest.mark.parametrize("turns", range(5))
async def test_a_wait_for_groups_can_be_cancelled_at_the_moment_of_a_change(turns: int) -> None:
    setup = Setup(ScriptedWorker(held=[(number, rollout_index) for number in range(8) for rollout_index in range(2)]))
    async with running(setup):
        waiting = asyncio.create_task(setup.orchestrator.next_groups())
        await settle()
        setup.publish(1)
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await settle()
        assert waiting.cancelled()


def worker_with_equal_rewards(*equal: int, held: Sequence[tuple[int, int]] = ()) -> ScriptedWorker:
    """Rollouts of the groups ``equal`` earn 0, and those of the others their index."""
    worker = ScriptedWorker(held=held)
    worker.outcomes = {(group_id, rollout_index): [Reward(0.0)] for group_id in equal for rollout_index in range(2)}
    return worker


def started_groups(worker: ScriptedWorker) -> list[int]:
    return [group_id for group_id, rollout_index in worker.started if rollout_index == 0]


async def test_groups_of_equal_rewards_are_replaced_until_the_limit_of_the_step() -> None:
    # the example of ``dynamic_sampling``
    worker = worker_with_equal_rewards(1, 2, 3, 4, 6, 7)
    async with running(Setup(worker, max_replaced=4, groups_per_step=4)) as setup:
        assert group_ids(await setup.orchestrator.next_groups()) == [0, 5, 6, 7]
        assert setup.observer.groups == ["replaced"] * 4
        assert setup.orchestrator.replaced_groups == 4
        setup.publish(1)  # the next step has a limit of its own, and nothing to replace
        assert group_ids(await setup.orchestrator.next_groups()) == [8, 9, 10, 11]
        assert setup.orchestrator.replaced_groups == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_replacements_of_a_synchronous_step_start_together_however_groups_finish(order: Sequence[int]) -> None:
    worker = worker_with_equal_rewards(0, 2, held=[(0, 0), (1, 0), (2, 0)])
    async with running(Setup(worker, max_replaced=1, groups_per_step=3)) as setup:
        await settle()
        for group_id in order:
            assert len(started_groups(worker)) == 3
            worker.release((group_id, 0))
            await settle()
        assert group_ids(await setup.orchestrator.next_groups()) == [1, 2, 3]
    assert worker.started[6:] == [(3, 0), (3, 1)]


async def test_a_step_that_is_resumed_among_its_replacements_repeats_them_in_the_same_order() -> None:
    equal = (1, 2, 4)
    whole = worker_with_equal_rewards(*equal)
    async with running(Setup(whole, max_replaced=9, groups_per_step=3)) as setup:
        trained = group_ids(await setup.orchestrator.next_groups())
    assert (trained, started_groups(whole)) == ([0, 3, 5], [0, 1, 2, 3, 4, 5])
    part = worker_with_equal_rewards(*equal, held=[(5, 0)])
    async with running(Setup(part, max_replaced=9, groups_per_step=3)) as setup:
        await settle()
        await settle()
        state = setup.orchestrator.state()
    assert (state.next_group_id, state.untrained) == (6, (0, 1, 2, 3, 4, 5))
    again = worker_with_equal_rewards(*equal)
    async with running(Setup(again, state, max_replaced=9, groups_per_step=3)) as setup:
        assert group_ids(await setup.orchestrator.next_groups()) == trained
        assert setup.orchestrator.state().untrained == ()
    assert again.started == whole.started


async def test_with_staleness_a_group_is_replaced_at_once_and_never_trained() -> None:
    worker = worker_with_equal_rewards(0, 3, held=[(1, 0)])
    async with running(Setup(worker, max_replaced=2, max_staleness=1)) as setup:
        await settle()
        await settle()
        assert set(started_groups(worker)) == {0, 1, 2, 3, 4, 5}  # two steps' groups, and two in place of 0 and 3
        worker.release((1, 0))
        trained = group_ids(await setup.orchestrator.next_groups())
        state = setup.orchestrator.state()
        assert setup.orchestrator.replaced_groups == 2
    assert set(trained) | set(state.untrained) == {1, 2, 4, 5}


async def test_groups_that_wait_for_the_end_of_an_outage_are_waited_for_before_others_are_replaced() -> None:
    worker = worker_with_equal_rewards(0, held=[(0, 0)])
    worker.outcomes[(1, 0)] = [DOWN]
    async with running(Setup(worker, max_replaced=2)) as setup:
        await settle()
        worker.release((0, 0))
        await settle()
        assert setup.observer.groups == ["underfilled"]
        setup.probe.well = True
        assert group_ids(await setup.orchestrator.next_groups()) == [1, 2]
    assert sorted(setup.observer.groups) == ["replaced", "underfilled"]
    assert started_groups(worker) == [0, 1, 1, 2]
