"""Whitening uses statistics of trainable tokens only.

That they are global over ranks is tested on real ranks in ../learner/test_ranks.py.
"""

import numpy as np
import pytest

from services.trainer.algorithms.whitening import Moments, whiten


def test_c8_statistics_ignore_masked_values() -> None:
    arrays, masks = (
        [np.array([1.0, 100.0, 3.0]), np.array([100.0, 5.0])],
        [
            np.array([True, False, True]),
            np.array([False, True]),
        ],
    )
    moments = Moments.of(arrays, masks)
    # 1, 3, 5: mean 3, population variance 8 / 3
    assert (moments.count, moments.mean) == (3.0, 3.0)
    assert moments.variance == pytest.approx(8 / 3)
    assert whiten(arrays[0], masks[0], moments).tolist() == pytest.approx([-2 / (8 / 3) ** 0.5, 0.0, 0.0], abs=1e-6)


def test_whitening_without_centring_only_scales() -> None:
    moments = Moments(2, 1.0, 4.0)
    assert whiten(np.array([2.0]), np.array([True]), moments, center=False).tolist() == pytest.approx([1.0])


def test_c12_a_batch_of_almost_equal_advantages_is_not_blown_up_to_unit_variance() -> None:
    noise, mask = np.array([0.001, -0.001]), np.array([True, True])
    moments = Moments.of([noise], [mask])
    assert whiten(noise, mask, moments, min_std=0.1).tolist() == pytest.approx([0.01, -0.01])
    assert abs(whiten(noise, mask, moments)).min() > 0.9


def test_an_empty_batch_has_moments_without_dividing_by_zero() -> None:
    assert Moments.of([], []) == Moments(0.0, 0.0, 0.0)
