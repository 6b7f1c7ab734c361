"""The warning about a collapse of the policy."""

import pytest

from services.trainer.runs.step_summary import CollapseDetector


def test_a_collapse_is_detected_also_against_the_best_average_before_a_resume() -> None:
    detector = CollapseDetector(window=2, fraction=0.5)
    assert [detector.observe(value) for value in (0.8, 0.8, 0.5, 0.2, 0.2)] == [False, False, False, True, True]
    resumed = CollapseDetector(window=2, fraction=0.5)
    resumed.restore([0.8, 0.8, 0.5])
    assert resumed.observe(0.2) and resumed.best == pytest.approx(0.8)
