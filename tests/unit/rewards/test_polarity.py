"""Yes and no are read from the beginning of an answer, whatever markup surrounds them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.rewards.polarity import polarity_of, polarity_of_golden


@pytest.mark.parametrize(
    "answer",
    [
        "Yes",
        "yes.",
        " YES!\n",
        "**Yes**",
        '"yes"',
        "“Yes”",
        "True",
        "True.",
        "Yes, there is no doubt that both are.",
        "yes they are",
        "Yes, no doubt about it.",
        "The answer is yes.",
        "Answer: Yes",
        "So the final answer is: **yes**",
        "\\boxed{Yes}",
        "- Yes",
    ],
)
def test_yes(answer: str) -> None:
    assert polarity_of(answer) is True


@pytest.mark.parametrize(
    "answer",
    [
        "No",
        "no.",
        "**No**",
        "False",
        "No, both lie in Sweden.",
        "No. Yes is what others say.",
        "No they are not",
        "no, it is not",
        "No — neither",
        "The correct answer is no",
        "No\nBoth lie in Sweden.",
        "No, there is no evidence",
        "no no",
        "No (they lie in Sweden)",
        "no [different towns]",
    ],
)
def test_no(answer: str) -> None:
    assert polarity_of(answer) is False


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There is no information in the documents.",
        "No information is given.",
        "No one knows.",
        "No longer",
        "Not really",
        "Yes and no",
        "yes/no",
        "Yes or no?",
        "No. Yes.",
        "Yesterday",
        "Norway",
        "Nobody",
        "True love",
        "False alarm",
        "Unknown",
        "It is true that nobody says yes",
        "I do not know",
        "maybe",
        "know: yes",
    ],
)
def test_neither(answer: str) -> None:
    assert polarity_of(answer) is None


@given(st.sampled_from(["yes", "no", "true", "false"]), st.text(alphabet=" .,!*'\"\n_`", max_size=6))
def test_decoration_does_not_matter(word: str, around: str) -> None:
    said = polarity_of(around + word + around)
    assert said is (word in ("yes", "true"))
    assert polarity_of_golden(word) is said


@given(st.sampled_from(["yes", "no", "true", "false"]), st.from_regex(r"\A[a-z0-9]+\Z"))
def test_a_longer_word_is_no_polarity(word: str, rest: str) -> None:
    assert polarity_of(word + rest) is None
