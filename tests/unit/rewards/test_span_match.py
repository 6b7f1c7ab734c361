"""A golden answer is found in a text as a span, which is proof unless it is short, negated or one of several."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.rewards.span_match import contains_answer, states_answer


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("He was born in New York City.", "new york"),
        ("The answer: Paris", "the Paris"),
        ("U.S. Army", "US Army"),
        ("It is 1,000 km", "1000"),
        ("Beyoncé sang", "beyonce\u0301"),
        ("a “Hamlet” play", "Hamlet"),
        ("他住在北京市", "北京"),
        ("rock-and-roll", "rock-and-roll"),
    ],
)
def test_answers_that_are_contained(text: str, golden: str) -> None:
    assert contains_answer(text, ["no such thing", golden])


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("party", "art"),
        ("York New", "New York"),
        ("New old York", "New York"),
        ("", "x"),
        ("São Paulo", "Sao Paulo"),
    ],
)
def test_answers_that_are_not(text: str, golden: str) -> None:
    assert not contains_answer(text, [golden])


@pytest.mark.parametrize("golden", ["", "the", "?!", " ", "A."])
def test_a_golden_answer_without_any_token_never_matches(golden: str) -> None:
    assert not contains_answer("the answer is a thing?!", [golden])
    assert not contains_answer("", [golden])


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("He was born in New York City.", "new york"),
        ("In 1969, he said.", "1969"),
        ("他住在北京市", "北京"),
        ("It is not London but it is Paris.", "Paris"),
        ("Paris, which was not known", "Paris"),
        ("No, it is Paris.", "Paris"),
        ("Rome or Oslo is what others say of Paris, the capital.", "Paris"),
    ],
)
def test_a_span_is_proof_of_a_long_golden_answer(text: str, golden: str) -> None:
    assert states_answer(text, ["no such thing", golden])


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("There is no information about this.", "no"),
        ("Yes, there is no doubt", "no"),
        ("That is not true", "true"),
        ("Vitamin C deficiency", "C"),
        ("12 of the documents speak of it", "12"),
        ("in 136 documents", "136"),
        ("It says so.", "It"),
        ("It is not Paris.", "Paris"),
        ("Paris or Rome", "Paris"),
        ("Rome or Paris", "Paris"),
        ("Paris, Rome or Oslo", "Paris"),
        ("Rome, rather than Paris", "Paris"),
        ("Rome instead of Paris", "Paris"),
        ("Nobody knows whether it lies in Paris.", "Paris"),
        ("I doubt that it is Paris.", "Paris"),
        ("Paris is wrong, it is Rome.", "Paris"),
        ("Paris? No, Rome.", "Paris"),
        ("Paris isn't the capital.", "Paris"),
        ("他不是住在北京", "北京"),
        ("He was never in Paris", "Paris"),
        ("It isn't Paris", "Paris"),
        ("他在京", "京"),
    ],
)
def test_a_span_is_no_proof_of_a_short_polar_or_negated_answer(text: str, golden: str) -> None:
    assert contains_answer(text, [golden])
    assert not states_answer(text, [golden])


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_a_text_contains_an_answer_written_in_the_middle(before: str, answer: str, after: str) -> None:
    contained = contains_answer(f"{before} | {answer} | {after}", [answer])
    assert contained == contains_answer(answer, [answer])
