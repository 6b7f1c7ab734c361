import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.rewards.judge_answer import parse_verdict


@pytest.mark.parametrize(
    "text", ["yes", "Yes.", " YES\n", "**Yes**", '"yes"', "Yes, it is contained.", "<think>no?</think>\nyes"]
)
def test_yes(text: str) -> None:
    assert parse_verdict(text) is True


@pytest.mark.parametrize("text", ["no", "No.", "NO!", "- no", "No, the response does not say.", "no no"])
def test_no(text: str) -> None:
    assert parse_verdict(text) is False


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "not", "nothing", "know", "I know: yes", "The answer is yes", "yes and no", "No. Yes.", "yes_no",
     "maybe", "none", "yesno", "yesterday: yes", "<think>yes", "да"],
)  # fmt: skip
def test_undecided(text: str) -> None:
    assert parse_verdict(text) is None


@settings(deadline=None)
@given(st.text())
def test_a_verdict_needs_the_word_itself(text: str) -> None:
    if parse_verdict(text) is not None:
        assert "yes" in text.lower() or "no" in text.lower()


@settings(deadline=None)
@given(
    st.sampled_from(["yes", "no", "Yes", "NO"]), st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=1)
)
def test_a_longer_word_that_begins_like_a_verdict_is_none(word: str, rest: str) -> None:
    assert parse_verdict(word + rest) is None


@settings(deadline=None)
@given(
    st.sampled_from(["yes", "no"]),
    st.text(alphabet=" .,!*'\"\n", max_size=5),
    st.text(alphabet=" .,!*'\"\n", max_size=5),
)
def test_punctuation_around_a_verdict_does_not_matter(word: str, before: str, after: str) -> None:
    assert parse_verdict(before + word + after) is (word == "yes")
