"""One rollout: retries after infrastructure failures, seeds, and the end of its engine session.

A lasting outage is an infrastructure failure without a reward, never a reward of 0.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Generation, Sampling
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Reward, Trajectory, Unscorable
from searchrl.errors import (
    ConfigurationError,
    Forbidden,
    InvalidRequest,
    NotFound,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from services.trainer.rewards.base import RewardFunction
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.group import RolloutSettings
from services.trainer.rollouts.rollout_worker import RewardScorer, RolloutWorker, rollout_seed
from services.trainer.rollouts.task_source import PromptGroup
from tests.fakes.in_memory_searcher import InMemorySearcher
from tests.fakes.tiny_policy import NumberedWords

PROMPT = PromptGroup(7, 0, Question("q", "w5 w6", ("gold",), filters={"world": "w1"}))
DONE_IDS = (9, 1)
PASSAGE = Passage("d", "w8", "w9", {"world": "w1"})


class FinishingPolicy:
    """Ends every rollout at once and records the seeds."""

    def __init__(self) -> None:
        self.seeds: list[int | None] = []

    async def generate(self, prompt_ids, sampling: Sampling, rollout_id: str) -> Generation:
        self.seeds.append(sampling.seed)
        return Generation(DONE_IDS, (-0.1, -0.2), (0, 0), "stop")


class ConstantReward:
    def __init__(self, failures: Sequence[ServiceError] = ()) -> None:
        self.failures = list(failures)

    def start_step(self) -> None: ...

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        if self.failures:
            raise self.failures.pop(0)
        return Reward(0.5)


class PlainProtocolTokenizer(NumberedWords):
    """Encodes any text, so that the real protocol's prompt can be used."""

    def encode(self, text: str) -> list[int]:
        return [4 + len(word) % 8 for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "<search_complete>True</search_complete>" if tuple(ids) == DONE_IDS else super().decode(ids)


def worker_of(
    searcher: InMemorySearcher,
    reward: ConstantReward,
    policy: FinishingPolicy | None = None,
    finished: FinishedRollouts | None = None,
) -> tuple[RolloutWorker, list[str]]:
    """A worker with scripted services and no pauses, and the list of the failures that it counts."""
    failures: list[str] = []
    scorer = RewardScorer(
        cast(RewardFunction[Any], reward), pause_seconds=0.0, on_failure=lambda error: failures.append(error.kind)
    )
    worker = RolloutWorker(
        policy or FinishingPolicy(), searcher, PlainProtocolTokenizer(), SearcherProfile(), scorer,
        RolloutSettings(infra_retries=2, retry_pause_seconds=0.0), 11, finished=finished,
        on_failure=lambda error: failures.append(error.kind),
    )  # fmt: skip
    return worker, failures


async def run_rollout(worker: RolloutWorker, rollout_index: int = 0):
    ended: list[bool] = []
    rollout = await worker.run_rollout(PROMPT, rollout_index, lambda: ended.append(True))
    assert ended == [True]
    return rollout


async def test_a_short_outage_is_retried_and_does_not_change_the_outcome() -> None:
    worker, failures = worker_of(InMemorySearcher([PASSAGE], [Unavailable("503")]), ConstantReward())
    rollout = await run_rollout(worker)
    assert rollout.outcome == Reward(0.5)
    assert (rollout.attempts, failures) == (2, ["unavailable"])


async def test_a_lasting_outage_is_an_infrastructure_failure_without_a_reward() -> None:
    worker, failures = worker_of(InMemorySearcher([PASSAGE], [Unavailable("503")] * 3), ConstantReward())
    rollout = await run_rollout(worker)
    assert isinstance(rollout.outcome, InfraFailure)
    assert rollout.value is None
    assert failures == ["unavailable"] * 3


async def test_a_request_that_can_never_succeed_is_not_repeated() -> None:
    worker, failures = worker_of(InMemorySearcher([PASSAGE], [InvalidRequest("too long")] * 3), ConstantReward())
    rollout = await run_rollout(worker)
    assert isinstance(rollout.outcome, Unscorable) and rollout.value is None
    assert failures == ["invalid"]


@pytest.mark.parametrize("refusal", [Unauthenticated("no key"), Forbidden("read only"), NotFound("no model 'm'")])
@pytest.mark.parametrize("where", ["rollout", "reward"])
async def test_a_refusal_that_holds_for_every_question_ends_the_run(refusal: ServiceError, where: str) -> None:
    searcher = InMemorySearcher([PASSAGE], [refusal] if where == "rollout" else [])
    worker, failures = worker_of(searcher, ConstantReward([refusal] if where == "reward" else []))
    with pytest.raises(ConfigurationError, match=str(refusal)):
        await run_rollout(worker)
    assert failures == [refusal.kind.value] and worker.stages == {}


async def test_a_failed_reward_is_tried_again_with_the_same_trajectory() -> None:
    policy = FinishingPolicy()
    worker, _ = worker_of(InMemorySearcher([PASSAGE]), ConstantReward([Unavailable("judge")]), policy)
    rollout = await run_rollout(worker)
    assert rollout.outcome == Reward(0.5)
    assert len(policy.seeds) == 1


async def test_a_trajectory_is_kept_until_the_services_behind_its_reward_are_back() -> None:
    policy = FinishingPolicy()
    worker, failures = worker_of(InMemorySearcher([PASSAGE]), ConstantReward([Unavailable("judge")] * 40), policy)
    rollout = await run_rollout(worker)
    assert rollout.outcome == Reward(0.5)
    assert failures == ["unavailable"] * 40 and len(policy.seeds) == 1


@pytest.mark.parametrize("weights", ["the same", "others"])
async def test_a_finished_rollout_is_not_sampled_again_by_a_later_process_with_the_same_weights(
    weights: str, tmp_path: Path
) -> None:
    policy = FinishingPolicy()
    for served in ("the same", weights):
        finished = FinishedRollouts(tmp_path, lockstep=True)
        finished.open({})
        finished.serve(0, served)
        worker, _ = worker_of(InMemorySearcher([PASSAGE]), ConstantReward(), policy, finished)
        worker.prepare([PROMPT], 1)
        assert (await run_rollout(worker)).outcome == Reward(0.5)
        finished.close()
    assert len(policy.seeds) == (1 if weights == "the same" else 2)


async def test_a_reward_that_is_refused_for_this_question_is_not_asked_for_again() -> None:
    worker, failures = worker_of(InMemorySearcher([PASSAGE]), ConstantReward([InvalidRequest("unreadable")] * 2))
    rollout = await run_rollout(worker)
    assert isinstance(rollout.outcome, Unscorable) and rollout.trajectory is not None
    assert failures == ["invalid"]


async def test_every_search_carries_the_questions_filters() -> None:
    searcher = InMemorySearcher([PASSAGE])
    worker, _ = worker_of(searcher, ConstantReward())
    await run_rollout(worker)
    assert searcher.calls == [(("w5 w6",), 3, {"world": "w1"})]


def test_seeds_are_a_function_of_the_place_in_the_run() -> None:
    seeds = {rollout_seed(run, group_id, index) for run in (0, 1) for group_id in range(20) for index in range(8)}
    assert len(seeds) == 2 * 20 * 8
    assert rollout_seed(0, 3, 4) == rollout_seed(0, 3, 4)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("rollout_index", [0, 5])
async def test_each_rollout_has_its_own_seed(rollout_index: int) -> None:
    policies = FinishingPolicy(), FinishingPolicy()
    for policy, number in zip(policies, (rollout_index, rollout_index + 1), strict=True):
        worker, _ = worker_of(InMemorySearcher([PASSAGE]), ConstantReward(), policy)
        await run_rollout(worker, number)
    assert policies[0].seeds != policies[1].seeds
