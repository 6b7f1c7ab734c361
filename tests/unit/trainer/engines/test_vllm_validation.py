"""A validation over vLLM servers sees one version, also if a server is lost meanwhile."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Limits
from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import push_weights
from services.trainer.engines.vllm.engine import VllmEngine
from services.trainer.rewards.base import RewardBase, RewardFunction
from services.trainer.rollouts.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.group import RolloutSettings
from services.trainer.rollouts.rollout_worker import RewardScorer, RolloutWorker
from services.trainer.validation.validator import Validator, validation_name
from tests.fakes.small_run import QUESTIONS, WORLD
from tests.fakes.small_world_services import SmallWorldSearcher
from tests.unit.trainer.engines.conftest import until, weights_of


class LengthReward(RewardFunction[RewardBase]):
    """Rewards the number of sampled tokens."""

    @classmethod
    def build(cls, settings: RewardBase, generator: GeneratorClient | None, questions: Sequence[Question]) -> Self:
        return cls()

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        return Reward(float(sum(trajectory.tokens.mask)), {"correct": 1.0})


async def answer() -> None:
    """A probe that succeeds."""


def validator_of(engine: VllmEngine, model: Path, folder: Path) -> Validator:
    # the model's tokens are bytes, of which the servers take 512
    limits = Limits(max_turn_tokens=8, max_context_tokens=400)
    profile = SearcherProfile(template="{question}{documents}", limits=limits, temperature=0.0, initial_top_k=0)
    rewards, settings = RewardScorer(LengthReward()), RolloutSettings()
    finished = FinishedRollouts(folder / "unscored", lockstep=False)
    worker = RolloutWorker(
        engine, SmallWorldSearcher(WORLD.passages), ModelTokenizer.from_folder(model), profile, rewards, settings, 0,
        finished=finished, name=validation_name,
    )  # fmt: skip
    breaker = CircuitBreaker(answer, CircuitBreakerSettings())
    return Validator(QUESTIONS, worker, rewards, engine, finished, breaker, settings, len(QUESTIONS), folder)


async def test_a_lost_server_costs_a_validation_no_question_and_no_second_version(
    started, model: Path, tmp_path: Path
) -> None:
    async with started(2) as setup:
        await push_weights(setup.engine, weights_of(2.0, 3))
        validator = validator_of(setup.engine, model, tmp_path / "validation")
        validator.open({})
        lost = setup.servers[0]
        lost.hanging = True
        # It raises if a token names another version than 3.
        validating = asyncio.create_task(validator.run(3, 3, weights_of(2.0, 3).fingerprint))
        await until(lambda: lost.running > 0)
        await lost.stop()
        scored = await validating
        summary = scored.summarize()
        assert summary["questions"] == len(QUESTIONS) and summary["reward"] > 0 and setup.failovers > 0
        assert {body["temperature"] for server in setup.servers for body in server.bodies} == {0}
        validator.close(discard=True)
