"""Derives the sampling seed of each turn of a rollout from the rollout's seed.

Turns need seeds of their own: with one seed for all, every turn would draw the same random numbers. The derivation is
fixed, so a rollout can be repeated in another process.
"""

_MASK_64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, SplitMix64's increment: multiples of it are spread evenly over 64 bits."""


def turn_seed(seed: int | None, turn: int, attempt: int = 0) -> int | None:
    """Return the seed of one ``generate`` call; None if the rollout has none.

    ``mix(mix(seed + (turn + 1) * gamma) + attempt * gamma) >> 1`` modulo 2**64, where ``gamma`` is the golden-ratio
    constant and ``mix`` the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). The result is in 0..2**63-1.
    ``attempt`` counts the continuations of a turn that the engine aborted.
    """
    if seed is None:
        return None
    return _mix(_mix(seed + (turn + 1) * _GOLDEN_GAMMA) + attempt * _GOLDEN_GAMMA) >> 1


def _mix(value: int) -> int:
    # Shifts and multipliers are SplitMix64's (Stafford's variant 13); other values would give other seeds.
    value &= _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
