"""Rewards of what the frozen generator answers from a searcher's documents: its accuracy, or its gain beyond RAG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.caches import SingleFlight
from searchrl.rewards.baseline_cache import BaselineCache
from searchrl.rewards.gain_beyond_rag import GainMode, RolloutReward
from services.trainer.rewards.base import RewardBase, RewardFunction

HOW_TO_REBUILD = "build it again from the run's questions (python -m services.evaluator.commands.build_baseline --help)"
MemoKey = tuple[str, tuple[str, ...], tuple[str, ...]]
"""The generator's question, its golden answers, and the ids of the documents."""


class GenerationSettings(RewardBase):
    """The costs and the penalty, which both kinds of reward have."""

    # If the gain is 1, an answer from 3 documents is worth 1 - 0.15 = 0.85, and 0.55 with a broken turn. Without a gain
    # it is at most 0: neither a few documents nor the format outweigh a correct answer.
    document_cost: NonNegativeFloat = Field(default=0.05, description="Share of a success lost per selected document.")
    search_cost: NonNegativeFloat = Field(default=0.0, description="Share of a success lost per search.")
    malformed_penalty: NonNegativeFloat = Field(default=0.3, description="Subtracted if any turn broke the protocol.")

    @property
    def needs_generator(self) -> bool:
        """See ``RewardBase``."""
        return True

    @model_validator(mode="after")
    def _check_costs(self) -> Self:
        for name in ("document_cost", "search_cost"):
            if getattr(self, name) >= 1:
                raise ValueError(
                    f"{name} is the share of a success that each one costs: from 1 on, a correct answer with a single "
                    "one is worth no more than a failure"
                )
        return self

    @property
    def costs(self) -> dict[str, float | str]:
        """See ``RewardBase``."""
        return self.model_dump(include={"document_cost", "search_cost", "malformed_penalty"})

    def describe(self) -> str:
        """See ``RewardBase``."""
        costs = f"{self.document_cost:g} of a success per document, {self.search_cost:g} per search"
        return f", less {costs}, less {self.malformed_penalty:g} if badly formed"


class GenerationAccuracySettings(GenerationSettings):
    """1 if the generator answers correctly from the searcher's documents, less the costs."""

    kind: Literal["generation_accuracy"] = Field(default="generation_accuracy", description="What counts as success.")


class GainBeyondRagSettings(GenerationSettings):
    """The generator's accuracy compared with its accuracy from naive RAG's documents, less the costs."""

    kind: Literal["gain_beyond_rag"] = Field(default="gain_beyond_rag", description="What counts as success.")
    gain_mode: GainMode = Field(default="utility", description="How accuracy and naive RAG's accuracy combine.")
    baseline_file: Path = Field(description="Naive RAG's results per question.")
    baseline_top_k: PositiveInt | None = Field(
        default=None, description="Passages that naive RAG read; None: as many as the searcher is shown first."
    )

    @property
    def baselines(self) -> Path:
        """See ``RewardBase``."""
        return self.baseline_file

    def with_baselines(self, file: Path) -> Self:
        """See ``RewardBase``."""
        return self.model_copy(update={"baseline_file": file})

    @property
    def naive_top_k(self) -> int | None:
        """See ``RewardBase``."""
        return self.baseline_top_k

    @property
    def costs(self) -> dict[str, float | str]:
        """See ``RewardBase``."""
        return {**super().costs, "gain_mode": self.gain_mode}

    def describe(self) -> str:
        """See ``RewardBase``."""
        return f" ({self.gain_mode}, against {self.baseline_file}){super().describe()}"


Settings = TypeVar("Settings", bound=GenerationSettings)


class GenerationReward(RewardFunction[Settings], Generic[Settings]):
    """Rewards documents from which the frozen generator answers correctly.

    Equal (question, documents) of one step share one call, also while the first answer is pending. ``baseline`` has the
    questions that naive RAG answers correctly; None if the reward does not compare.
    """

    def __init__(
        self, generator: GeneratorClient, reward: RolloutReward, baseline: BaselineCache | None = None
    ) -> None:
        self._generator = generator
        self._reward = reward
        self._baseline = baseline
        self._memo: SingleFlight[MemoKey, bool] = SingleFlight(keep_results=True)

    def start_step(self) -> None:
        """See ``RewardFunction``."""
        # Bounds the memory: within a step there are at most as many entries as rollouts that were scored.
        self._memo.clear()

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        """See ``RewardFunction``."""
        # First, since it needs no service: a question without a baseline must not cost an answer and a verdict.
        rag_correct = self._baseline is not None and self._baseline.rag_correct(question.id)
        correct = await self._is_correct(question, trajectory.documents)
        return self._reward.score(trajectory, correct, rag_correct)

    async def _is_correct(self, question: Question, documents: Sequence[Passage]) -> bool:
        # The rollouts of a group often end with the same documents: 8 rollouts with 3 different selections cost 3
        # answers and verdicts. The order of the documents counts, because the generator's prompt has them in that
        # order.
        key = (question.generator_text, question.golden_answers, tuple(passage.id for passage in documents))
        return await self._memo.run(key, lambda: self._ask(question, documents))

    async def _ask(self, question: Question, documents: Sequence[Passage]) -> bool:
        answer = await self._generator.answer_from_context(question.generator_text, documents)
        if not answer.text.strip():
            return False
        verdict = await self._generator.judge(
            question.generator_text, answer.text, question.golden_answers, question.choices
        )
        return verdict.correct


class GenerationAccuracyReward(GenerationReward[GenerationAccuracySettings]):
    """Rewards the generator's accuracy alone."""

    @classmethod
    def build(
        cls, settings: GenerationAccuracySettings, generator: GeneratorClient | None, questions: Sequence[Question]
    ) -> Self:
        """See ``RewardFunction``."""
        return cls(_require(generator), _rollout_reward(settings, "generation"))


class GainBeyondRagReward(GenerationReward[GainBeyondRagSettings]):
    """Rewards the generator's accuracy compared with naive RAG's, as s3 does (2505.14146)."""

    @classmethod
    def build(
        cls, settings: GainBeyondRagSettings, generator: GeneratorClient | None, questions: Sequence[Question]
    ) -> Self:
        """See ``RewardFunction``."""
        reward = _rollout_reward(settings, settings.gain_mode)
        return cls(_require(generator), reward, read_baseline(settings.baseline_file, questions))


def _require(generator: GeneratorClient | None) -> GeneratorClient:
    if generator is None:
        raise ConfigurationError("this reward needs services.generator, the address of a generator")
    return generator


def _rollout_reward(settings: GenerationSettings, mode: GainMode) -> RolloutReward:
    return RolloutReward(
        mode=mode,
        document_cost=settings.document_cost,
        search_cost=settings.search_cost,
        malformed_penalty=settings.malformed_penalty,
    )


def read_baseline(path: Path, questions: Sequence[Question]) -> BaselineCache:
    """Read naive RAG's results.

    Raises:
        ConfigurationError: the file cannot be used, lacks a question, or is of questions that have changed since.
    """
    try:
        baseline = BaselineCache.load(path)
        baseline.require_questions(questions)
    except ServiceError as error:
        raise ConfigurationError(f"reward.baseline_file: {error}; {HOW_TO_REBUILD}") from error
    return baseline
