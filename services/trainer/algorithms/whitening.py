"""Brings advantages to mean 0 and variance 1 over all trainable tokens of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and variance of the trainable tokens of a batch."""

    count: float
    mean: float
    variance: float

    @classmethod
    def of(
        cls,
        arrays: Sequence[NDArray[np.floating]],
        masks: Sequence[NDArray[np.bool_]],
    ) -> "Moments":
        """Measure masked values only.

        The mean is computed first and the squared distances to it second: a single pass (E[x^2] - E[x]^2) would lose
        precision where the mean is large compared with the deviation.
        """
        picked = [np.asarray(a, dtype=np.float64)[m] for a, m in zip(arrays, masks, strict=True)]
        flat = np.concatenate(picked) if picked else np.zeros(0)
        count = float(len(flat))
        mean = float(flat.sum()) / max(count, 1.0)
        return cls(count, mean, float(((flat - mean) ** 2).sum()) / max(count, 1.0))


def whiten(
    array: NDArray[np.floating],
    mask: NDArray[np.bool_],
    moments: Moments,
    *,
    center: bool = True,
    min_std: float = 0.0,
) -> NDArray[np.float64]:
    """Scale the masked values to unit variance (and mean 0 if ``center``); 0 elsewhere.

    A batch whose standard deviation is below ``min_std`` is not scaled up to unit variance: once every
    rollout earns the same reward, the remaining variation is the critic's noise.
    """
    whitened = np.zeros(len(array))
    shifted = np.asarray(array, dtype=np.float64)[mask] - (moments.mean if center else 0.0)
    # 1e-8 keeps the division finite for a constant batch when ``min_std`` is 0
    whitened[mask] = shifted / max(np.sqrt(moments.variance + 1e-8), min_std)
    return whitened
