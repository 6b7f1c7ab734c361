"""The option that an answer picks is found by letter or text, and only if it is unambiguous."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.domain.question import Choice
from searchrl.rewards.choice_match import find_choice, find_letter, is_golden_choice

CHOICES = (Choice("A", "cold water"), Choice("B", "fire"), Choice("C", "a heavy coat"), Choice("D", "water"))
POLAR = (Choice("A", "yes"), Choice("B", "no"), Choice("C", "maybe"))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        *(
            (answer, "A")
            for answer in (
                "A",
                "a",
                "A.",
                "(A)",
                "[A]",
                "**A**",
                "\\boxed{A}",
                "Option A",
                "option (A)",
                "A)",
                "A: cold water",
                "A. Cold water",
                "A) cold water, because it cools",
                "(A) cold water",
                "A - cold water",
                "A\nIt cools.",
                "cold water",
                "Cold water.",
                "It is cold water.",
                "The answer is A",
                "The answer is (A).",
                "The correct answer is A: cold water",
                "Answer: A",
                "I choose A.",
                "The answer is A. Option B is wrong.",
                "<answer>A</answer>",
                "<answer>cold water</answer>",
                "The best option would be A",
                "I think the correct choice is **A**, for it cools.",
            )
        ),
        *((answer, "B") for answer in ("Fire!", "B, because it is hot", "It must be fire.")),
        *(
            (answer, "C")
            for answer in (
                "A heavy coat",
                "a heavy coat",
                "heavy coat",
                "the answer is a heavy coat",
                "C. A heavy coat",
            )
        ),
        *((answer, "D") for answer in ("water", "D: water")),
    ],
)
def test_the_picked_option_is_found(answer: str, label: str) -> None:
    found = find_choice(answer, CHOICES)
    assert found is not None and found.label == label


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "E",
        "A: fire",
        "A or B",
        "The answer is A or B",
        "not fire",
        "It is not fire.",
        "It would not help in any way to use fire.",
        "fire and cold water",
        "Vitamin B deficiency",
        "B12",
        "A cat",
        "I do not know",
        "neither",
        "Plan B failed",
        "I think it is B, for cold water does not burn.",
        "It must be C since fire is too hot",
        "Option A is wrong",
        "The answer is A? No, option A isn't right.",
        "Option B cannot be the answer",
    ],
)
def test_an_answer_that_picks_none_or_several_is_left_open(answer: str) -> None:
    assert find_choice(answer, CHOICES) is None


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Yes, there is no doubt", "A"),
        ("No", "B"),
        ("no, it is not", "B"),
        ("Maybe", "C"),
        ("B", "B"),
        ("There is no information", None),
    ],
)
def test_options_yes_and_no_are_picked_by_polarity(answer: str, label: str | None) -> None:
    found = find_choice(answer, POLAR)
    assert (found.label if found else None) == label


def test_options_that_are_numbers_or_labels_of_others() -> None:
    numbers = (Choice("A", "2"), Choice("B", "4"))
    assert [find_choice(answer, numbers) for answer in ("4", "B", "2")] == [numbers[1], numbers[1], numbers[0]]
    swapped = (Choice("1", "2"), Choice("2", "1"))
    assert find_choice("1", swapped) is None
    letters = (Choice("A", "B"), Choice("B", "C"), Choice("C", "A"))
    assert [is_golden_choice(choice, ["B", "C"], letters) for choice in letters] == [False, True, False]


@pytest.mark.parametrize("golden", [["B", "fire"], ["B"], ["b"], ["fire"], ["Fire."], ["B: fire"], ["(B) fire"]])
def test_a_golden_option_is_known_by_label_text_or_both(golden: list[str]) -> None:
    assert [is_golden_choice(choice, golden, CHOICES) for choice in CHOICES] == [False, True, False, False]


texts = st.from_regex(r"\A[a-z]{4,9}( [a-z]{4,9}){0,2}\Z").filter(
    lambda text: "not" not in text and "never" not in text
)


@given(st.lists(texts, min_size=2, max_size=5, unique=True), st.data())
def test_every_option_is_picked_by_its_letter_and_by_its_text(options: list[str], data: st.DataObject) -> None:
    choices = tuple(Choice(chr(ord("A") + number), text) for number, text in enumerate(options))
    choice = data.draw(st.sampled_from(choices))
    for answer in (
        choice.label,
        f"({choice.label})",
        choice.text,
        f"{choice.label}: {choice.text}",
        f"The answer is {choice.label}.",
    ):
        assert find_choice(answer, choices) == choice


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("(c)", "C"),
        ("C: cold water", "C"),
        ("The answer is C.", "C"),
        ("Vitamin C deficiency", None),
        ("C or D", None),
        ("the answer is a town", None),
        ("", None),
    ],
)
def test_a_letter_is_found_without_the_options(answer: str, letter: str | None) -> None:
    assert find_letter(answer) == letter
