"""The soft penalty on long rollouts, computed manually."""

import pytest

from searchrl.domain.trajectory import TokenKind, Trajectory
from searchrl.rewards.overlong import OverlongPenalty


def trajectory(sampled: int) -> Trajectory:
    """So many sampled tokens, behind a prompt that is longer than every limit here."""
    made = Trajectory("q")
    made.tokens.append_given([1] * 500, TokenKind.PROMPT)
    made.tokens.append_sampled([2] * sampled, [0.0] * sampled, [0] * sampled, [int(TokenKind.ACTION)] * sampled)
    return made


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0.0), (80, 0.0), (90, -0.25), (95, -0.375), (100, -0.5)])
def test_the_penalty_rises_over_the_buffer(tokens: int, expected: float) -> None:
    # a limit of 100 and a buffer of 20: 90 tokens are half way between 80 and 100
    assert OverlongPenalty(0.5, 100, 20).score(trajectory(tokens)) == pytest.approx(expected)


def test_beyond_the_limit_the_penalty_is_complete() -> None:
    assert OverlongPenalty(1.0, 100, 20).score(trajectory(300)) == -1.0
