"""Methods are compared on common questions only, and the paired test keeps its significance level."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.statistics.paired_difference import holm, paired_difference, sign_flip_p_value


def test_only_questions_in_common_count_and_the_others_are_reported() -> None:
    result = paired_difference({"a": 1, "b": 1, "c": 0, "x": 1}, {"a": 0, "b": 1, "c": 0, "y": 1, "z": 1})
    assert (result.count, result.only_first, result.only_second) == (3, 1, 2)
    assert result.difference == pytest.approx(1 / 3)
    assert (result.wins, result.losses) == (1, 0)


def test_no_common_question_gives_no_difference() -> None:
    result = paired_difference({"a": 1}, {"b": 1})
    assert result.count == 0
    assert math.isnan(result.difference)
    assert math.isnan(result.p_value)


scores = st.dictionaries(st.sampled_from("abcdefghijkl"), st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=12)


@given(scores, scores)
@settings(max_examples=60, deadline=None)
def test_swapping_the_methods_changes_the_sign_and_nothing_else(first: dict, second: dict) -> None:
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.count, there.wins, there.losses) == (back.count, back.losses, back.wins)
    if there.count:
        assert there.difference == pytest.approx(-back.difference)
        assert there.low - 1e-9 <= there.difference <= there.high + 1e-9
        assert there.p_value == pytest.approx(back.p_value)


def test_right_and_wrong_answers_get_the_exact_binomial_test() -> None:
    # 8 wins and 2 losses: 2 * (1 + 10 + 45) / 1024
    differences = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 30)
    assert sign_flip_p_value(differences) == pytest.approx(2 * 56 / 1024)


def test_graded_scores_agree_with_all_sign_patterns() -> None:
    differences = np.array([0.9, -0.1, 0.4, 0.7, -0.3, 0.2, 0.5])
    patterns = np.array(list(itertools.product([-1, 1], repeat=7)))
    exact = float((np.abs(patterns @ differences) >= abs(differences.sum()) - 1e-9).mean())
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.015)


def test_equal_methods_give_p_one() -> None:
    assert sign_flip_p_value(np.zeros(5)) == 1.0
    assert sign_flip_p_value(np.array([1.0, -1.0])) == 1.0


def test_under_the_null_hypothesis_few_comparisons_are_significant() -> None:
    generator = np.random.default_rng(2)
    significant = sum(sign_flip_p_value(generator.normal(size=25), seed=number) < 0.05 for number in range(200))
    assert significant <= 22  # binomial(200, 0.05): mean 10, four standard deviations


def test_a_large_sample_does_not_overflow() -> None:
    differences = np.array([1.0] * 6000 + [-1.0] * 5000)
    assert 0 < sign_flip_p_value(differences) < 1e-15


def test_holm_multiplies_by_the_comparisons_left_and_never_falls() -> None:
    # sorted .01 .03 .04: .01*3, max(.03*2, .03), max(.04*1, .06)
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([0.01, math.nan])[0] == pytest.approx(0.01)
