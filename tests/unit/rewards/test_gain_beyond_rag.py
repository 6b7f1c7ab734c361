"""The reward of a rollout: gain over naive RAG, costs and the penalty for malformed turns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import Trajectory, Turn
from searchrl.rewards.gain_beyond_rag import GainMode, RolloutReward, gain_beyond_rag


@pytest.mark.parametrize(
    ("correct", "rag_correct", "utility", "generation", "both"),
    [(True, False, 1, 1, 2), (True, True, 0, 1, 1), (False, False, 0, 0, 0), (False, True, -1, 0, -1)],
)
def test_the_gain_of_each_mode_follows_its_table(
    correct: bool, rag_correct: bool, utility: float, generation: float, both: float
) -> None:
    assert gain_beyond_rag(correct, rag_correct, "utility") == utility
    assert gain_beyond_rag(correct, rag_correct, "generation") == generation
    assert gain_beyond_rag(correct, rag_correct, "both") == both


def trajectory(documents: int = 0, searches: int = 0, well_formed: bool = True) -> Trajectory:
    return Trajectory(
        "q",
        turns=[Turn("t", "search", ("query",)) for _ in range(searches)],
        documents=tuple(Passage(str(number), "", "") for number in range(documents)),
        well_formed=well_formed,
    )


def test_documents_and_searches_cost_a_share_of_success() -> None:
    reward = RolloutReward("generation", document_cost=0.05, search_cost=0.1)
    scored = reward.score(trajectory(documents=2, searches=3), correct=True, rag_correct=False)
    assert scored.value == pytest.approx(0.6)
    assert scored.parts == pytest.approx({"correct": 1, "rag_correct": 0, "gain": 1, "cost": -0.4, "malformed": 0})


def test_costs_do_not_apply_to_failures() -> None:
    reward = RolloutReward("utility", document_cost=0.05, search_cost=0.1)
    assert reward.score(trajectory(9, 3), correct=False, rag_correct=False).value == 0.0
    assert reward.score(trajectory(9, 3), correct=False, rag_correct=True).value == -1.0


def test_bad_form_is_charged_on_success_and_on_failure() -> None:
    reward = RolloutReward("generation", malformed_penalty=0.3)
    assert reward.score(trajectory(well_formed=False), True, False).value == pytest.approx(0.7)
    assert reward.score(trajectory(well_formed=False), False, False).value == pytest.approx(-0.3)


@settings(deadline=None)
@given(st.booleans(), st.booleans(), st.integers(0, 500), st.sampled_from(["utility", "generation", "both"]))
def test_the_parts_add_up_and_costs_never_turn_a_gain_into_a_loss(
    correct: bool, rag_correct: bool, documents: int, mode: GainMode
) -> None:
    scored = RolloutReward(mode, document_cost=0.05).score(trajectory(documents), correct, rag_correct)
    assert scored.value == pytest.approx(scored.parts["gain"] + scored.parts["cost"] + scored.parts["malformed"])
    assert scored.value >= min(scored.parts["gain"], 0.0)
