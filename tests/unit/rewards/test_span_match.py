"""A golden answer is found in a text as a span, which is proof unless it is short, negated or one of several."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from searchrl.rewards.answer_normalization import span_tokens
from searchrl.rewards.span_match import SentenceTokens, contains_answer, states_answer


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
def test_a_text_contains_these_golden_answers(text: str, golden: str) -> None:
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
def test_a_text_does_not_contain_these_golden_answers(text: str, golden: str) -> None:
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
        ("He was not in the north of Rome, but he was in the north of Paris.", "Paris"),
        ("It is not London but Paris.", "Paris"),
        ("That is not true. He lived in the north of Paris.", "Paris"),
        ("He did not live in Rome; he lived in Paris.", "Paris"),
        ("Did he not live in “Rome?” He lived in Paris.", "Paris"),
        ("他不是住在罗马。他住在北京。", "北京"),
        ("他不是住在意大利的首都罗马，而是北京", "北京"),
        ("非洲最大的城市是开罗", "开罗"),
        ("开罗，非洲最大的城市", "开罗"),
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
        ("Paris isn’t the capital.", "Paris"),
        ("北京不是首都", "北京"),
        ("He was not in the north of Paris.", "Paris"),
        ("He never once in his long life saw the city of Paris.", "Paris"),
        ("He wasn’t in the north of Paris.", "Paris"),
        ("He was not with Prof. Miller in Paris.", "Paris"),
        ("He was not in the St. Denis that belongs to Paris.", "Paris"),
        ("It is not the capital of that country, Paris.", "Paris"),
        ("He was in Rome but not in the northern suburbs of Paris.", "Paris"),
        ("He was not in the poor but beautiful city of Paris.", "Paris"),
        ("It is unlikely, but it may be Paris.", "Paris"),
        ("It is unlikely that he lived in the north of Paris.", "Paris"),
        ("他不是住在北京", "北京"),
        ("他从来没有住在中国的首都北京", "北京"),
        ("他不曾，据说，到过中国的首都北京", "北京"),
        ("他不在美丽而古老的北京", "北京"),
        ("他并非住在中国的首都北京", "北京"),
        ("He was never in Paris", "Paris"),
        ("It isn't Paris", "Paris"),
        ("他在京", "京"),
    ],
)
def test_a_span_is_no_proof_of_a_short_polar_or_negated_answer(text: str, golden: str) -> None:
    assert contains_answer(text, [golden])
    assert not states_answer(text, [golden])


@example(";’ a")
@given(st.text(alphabet="ab tT.!?;。’' \n\u0301", max_size=30))
def test_a_text_has_the_same_tokens_with_its_sentences(text: str) -> None:
    assert SentenceTokens.of(text).tokens == span_tokens(text)


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_a_text_contains_an_answer_written_in_the_middle(before: str, answer: str, after: str) -> None:
    contained = contains_answer(f"{before} | {answer} | {after}", [answer])
    assert contained == contains_answer(answer, [answer])
