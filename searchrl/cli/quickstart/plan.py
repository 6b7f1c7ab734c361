"""Defines the size of a quickstart, full and fast: numbers of worlds, questions and steps."""

from dataclasses import dataclass
from pathlib import Path

WARM_START = Path(__file__).resolve().parents[2] / "small_world" / "warm_start"


@dataclass(frozen=True, slots=True)
class QuickstartPlan:
    """Sizes of one quickstart.

    Attributes:
        seed: seed of the worlds, the rollouts and the order of questions.
        train_worlds: worlds to train on; many small ones, so that nothing can be memorized.
        test_questions: questions of unseen worlds that every method answers.
        large_questions: questions of the larger unseen world, whose names occur nowhere else.
        steps: RL steps of 24 questions x 8 rollouts.
        from_scratch: also train the warm start, instead of using the one in the package.
        demonstrations: number of demonstrations that this warm start imitates; None: its program's default.
    """

    seed: int
    train_worlds: int
    test_questions: int
    large_questions: int
    steps: int
    from_scratch: bool
    demonstrations: int | None

    @classmethod
    def full(cls, seed: int, from_scratch: bool, steps: int | None = None) -> "QuickstartPlan":
        """Under ten minutes on two cores."""
        return cls(seed, 100, 400, 300, steps or 70, from_scratch, None)

    @classmethod
    def fast(cls, seed: int, from_scratch: bool, steps: int | None = None) -> "QuickstartPlan":
        """Under three minutes on two cores: fewer steps and questions, so a weaker searcher and wider intervals."""
        return cls(seed, 40, 120, 60, steps or 12, from_scratch, 20_000)

    @property
    def test_worlds(self) -> int:
        """Number of unseen worlds, each with 150 questions."""
        # Rounded up: 400 questions need 3 worlds.
        return -(-self.test_questions // 150)

    @property
    def world_seed(self) -> int:
        """Seed of worlds that the warm start has not seen: it was trained on world seed 0."""
        return 1000 + self.seed
