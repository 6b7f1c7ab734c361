"""From which lines a run is in trouble, and which of its steps are known to be good."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from services.trainer.runs.trouble_detector import GoodSteps, Trouble, TroubleDetector
from services.trainer.settings import SelfRepairSettings
from services.trainer.validation.history import QUESTION_SET


def detect(lines: Sequence[dict[str, Any]], nonfinite_steps: int = 3, **settings: Any) -> Trouble | None:
    """Return the first trouble."""
    detector = TroubleDetector(SelfRepairSettings(**settings), nonfinite_steps, "success")
    found = (detector.read(lines[:count]) for count in range(1, len(lines) + 1))
    return next((trouble for trouble in found if trouble is not None), None)


def rewards(*values: float, **more: Any) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 0.1, "reward": value, **more} for step, value in enumerate(values, start=1)]


def validation(step: int, success: float) -> dict[str, Any]:
    return {"step": step, "validation_success": success, QUESTION_SET: "q"}


COLLAPSE = {"collapse_steps": 2, "collapse_window": 2, "collapse_drop": 0.5}


def test_losses_that_are_not_finite_are_trouble_after_so_many_steps_in_a_row() -> None:
    lines = [
        {"step": step, "loss": loss} for step, loss in enumerate([0.1, math.nan, 0.1, math.nan, math.inf], start=1)
    ]
    trouble = detect(lines, nonfinite_steps=2)
    # Step 4 was the first of the two; the weights of step 3 gave its loss, and those of step 2 a finite one.
    assert trouble is not None and (trouble.step, trouble.good) == (5, GoodSteps(2, 3))
    assert detect(lines, nonfinite_steps=3) is None


@pytest.mark.parametrize("name", ["skipped_steps", "value_skipped_steps"])
def test_an_update_that_gives_up_began_with_the_first_skipped_step_in_a_row(name: str) -> None:
    detector = TroubleDetector(SelfRepairSettings(), 3, "success")
    skipped = [0, 1, 0, 1, 1]
    assert detector.read([{"step": step, "loss": 0.1, name: count} for step, count in enumerate(skipped, 1)]) is None
    assert detector.to_keep == [GoodSteps(2, 3)]
    assert detector.describe_divergence(6, "gave up") == Trouble("gave up", 6, GoodSteps(2, 3))


def test_a_reward_that_stays_below_half_of_its_best_mean_is_a_collapse() -> None:
    # means of two steps: - .3 .6 .5 .2 .1, the best with step 3; .2 and .1 are below .3
    trouble = detect(rewards(0.2, 0.4, 0.8, 0.2, 0.2, 0.0), **COLLAPSE)
    assert trouble is not None and (trouble.step, trouble.good) == (6, GoodSteps(3, 3))
    assert trouble.cause == "for 2 steps the reward was below 50% of 0.6, its best mean"


@pytest.mark.parametrize(
    "values",
    [
        (0.2, 0.4, 0.8, 0.2, 0.2, 0.8, 0.0, 0.2),  # one low mean at a time: .5 .2 .5 .4 .1
        (-0.3, -0.1, -0.3, -0.3, -0.3, -0.3),  # it never had a reward to lose
    ],
)
def test_a_reward_that_recovers_or_was_never_positive_is_none(values: tuple[float, ...]) -> None:
    assert detect(rewards(*values), **COLLAPSE) is None


def test_a_collapse_is_only_looked_for_if_that_is_wanted() -> None:
    assert detect(rewards(0.8, 0.8, *[0.0] * 60, entropy=0.0)) is None


def test_validations_decide_instead_of_the_training_reward() -> None:
    falling = rewards(0.8, 0.8, 0.1, 0.1, 0.1)
    assert detect([validation(0, 0.6), *falling, validation(5, 0.5)], **COLLAPSE) is None
    lines = [validation(0, 0.5), *rewards(0.8), validation(1, 0.6), *rewards(0.8, 0.8)[1:], validation(2, 0.2)]
    trouble = detect([*lines, *rewards(*[0.8] * 4)[2:]], **COLLAPSE)
    assert trouble is not None and (trouble.step, trouble.good) == (4, GoodSteps(1, 1))  # two steps after step 2
    assert "since step 2 the success of the validations is below 50% of 0.6" in trouble.cause


def test_a_policy_without_entropy_at_its_lowest_reward_is_stuck() -> None:
    lines = [*rewards(0.3, 0.3), *[line | {"entropy": 1e-6} for line in rewards(*[0.3] * 5)[2:]]]
    trouble = detect(lines, **COLLAPSE)
    assert trouble is not None and trouble.step == 4 and "the entropy was 0" in trouble.cause
    better = [line | {"reward": 0.9} for line in lines[2:]]  # deterministic, and good at it
    assert detect([*lines[:2], *better], **COLLAPSE) is None
