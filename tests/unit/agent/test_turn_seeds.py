"""The seeds of a rollout's turns, whose formula resumed runs depend on."""

from searchrl.agent.turn_seeds import turn_seed


def test_a_rollout_without_a_seed_has_none_for_its_turns() -> None:
    assert turn_seed(None, 0) is None


def test_the_formula_is_fixed_because_resumed_runs_depend_on_it() -> None:
    assert turn_seed(0, 0) == 2598789274482403935
    assert turn_seed(0, 1) == 7402227970980107795
    assert turn_seed(12345, 2, attempt=1) == turn_seed(12345, 2, 1)


def test_seeds_differ_between_neighboring_rollouts_turns_and_attempts() -> None:
    seeds = {turn_seed(seed, turn, attempt) for seed in range(50) for turn in range(10) for attempt in range(4)}
    assert len(seeds) == 2000


def test_seeds_fit_a_signed_64_bit_integer() -> None:
    seeds = [turn_seed(seed, turn) or 0 for seed in (-1, 0, 2**63, 2**70) for turn in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds)
