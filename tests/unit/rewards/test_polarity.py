"""Yes and no are read from the beginning of an answer and from a judge's reply, whatever surrounds them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.rewards.polarity import parse_verdict, polarity_of, polarity_of_golden


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
def test_an_answer_says_yes(answer: str) -> None:
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
def test_an_answer_says_no(answer: str) -> None:
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
def test_an_answer_says_neither(answer: str) -> None:
    assert polarity_of(answer) is None


@given(st.sampled_from(["yes", "no", "true", "false"]), st.text(alphabet=" .,!*'\"\n_`", max_size=6))
def test_decoration_does_not_matter(word: str, around: str) -> None:
    said = polarity_of(around + word + around)
    assert said is (word in ("yes", "true"))
    assert polarity_of_golden(word) is said


@given(st.sampled_from(["yes", "no", "true", "false"]), st.from_regex(r"\A[a-z0-9]+\Z"))
def test_a_longer_word_has_no_polarity(word: str, rest: str) -> None:
    assert polarity_of(word + rest) is None


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "Yes.",
        " YES\n",
        "**Yes**",
        '"yes"',
        "Yes, it is contained.",
        "<think>no?</think>\nyes",
        "no?</think>yes",
        "Yes, there is no doubt.",
        "Verdict: yes",
        "verdict = **Yes**",
        "Final answer: yes",
        "True",
        "[[yes]]",
        "\\boxed{yes}",
        "$\\boxed{\\text{Yes}}$",
        "The answer is yes",
        '{"correct": true}',
        '{"verdict": "yes", "why": "x"}',
        '```json\n{"is_correct": true}\n```',
        'It says so.\n\n{"correct": true}',
        "Correct.",
        "The response is right.",
        "The response says Paris.\nThe golden answer is Paris.\n\nVerdict: yes",
        "Yes\nIt states it.",
        '{"score": 0, "correct": 1}',
        "{'correct': True, 'why': 'x'}",
        "<verdict>yes</verdict>",
        "Correct: yes",
        "is_correct = true",
    ],
)
def test_a_reply_that_means_yes_is_read_as_yes(text: str) -> None:
    assert parse_verdict(text) is True


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "No.",
        "NO!",
        "- no",
        "No, the response does not say.",
        "no no",
        "False",
        "Verdict: no",
        "yes?</think>\n\nNo",
        "[THINK]yes[/THINK]no",
        '{"correct": false}',
        '{"answer": "No"}',
        "Incorrect.",
        "The response is not correct.",
        "Judgement: wrong",
        "<answer>no</answer>",
        "{'correct': False}",
        "correct: false",
        "It names another town.\n**No**",
    ],
)
def test_a_reply_that_means_no_is_read_as_no(text: str) -> None:
    assert parse_verdict(text) is False


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "not", "nothing", "know", "I know: yes", "yes and no", "No. Yes.", "yes_no",
     "maybe", "none", "yesno", "yesterday: yes", "<think>yes", "да",
     "No.\nVerdict: yes", '{"correct": null}', '{"correct": true} {"correct": false} {}', "{}",
     "True love", "Right answer: Oslo", '{"correct": true, "verdict": "no"}'],
)  # fmt: skip
def test_a_reply_that_means_neither_is_read_as_no_verdict(text: str) -> None:
    assert parse_verdict(text) is None


@settings(deadline=None)
@given(st.text())
def test_a_verdict_needs_the_word_itself(text: str) -> None:
    if parse_verdict(text) is not None:
        assert re.search("yes|no|true|false|correct|right|wrong", text.lower())


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
