"""Exact match and F1 have the values of SQuAD's own script; an option is found by letter or text if unambiguous."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.answer_normalization import comparable_forms, normalize_answer, span_tokens, split_units
from searchrl.rewards.answers import exact_match, find_choice, find_letter, is_golden_choice, overlap_f1, token_f1

# SQuAD calls an empty answer right where nothing is left of the golden one. Here an empty answer is never right, and
# answers of articles alone are compared with their articles.
OURS_DIFFER = {("", ""), ("the", "an")}
ROWS = [json.loads(line) for line in (Path(__file__).parent / "squad_vectors.jsonl").read_text("utf-8").splitlines()][
    1:
]


answers = st.text(min_size=1).filter(lambda text: strip_thoughts(text) == text)


def test_all_published_rows_are_there() -> None:
    assert len(ROWS) == 17


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['prediction']}|{row['gold']}")
def test_exact_match_and_word_f1_are_those_of_squad(row: dict[str, str | float]) -> None:
    prediction, gold = str(row["prediction"]), str(row["gold"])
    is_ours = (prediction, gold) in OURS_DIFFER
    assert exact_match(prediction, [gold]) == (bool(row["em"]) and not is_ours)
    words = overlap_f1(normalize_answer(prediction).split(), normalize_answer(gold).split())
    assert words == pytest.approx(row["f1"], abs=1e-4)
    if not is_ours and split_units(normalize_answer(prediction)) == normalize_answer(prediction).split():
        assert token_f1(prediction, [gold]) == pytest.approx(row["f1"], abs=1e-4)


def test_the_best_golden_answer_counts() -> None:
    assert exact_match("Paris", ["London", "The Paris!"])
    assert token_f1("Paris France", ["London", "Paris"]) == pytest.approx(2 / 3)


def test_without_golden_answers_nothing_matches() -> None:
    assert not exact_match("", [])
    assert token_f1("", []) == 0.0


def test_chinese_is_compared_by_character() -> None:
    assert token_f1("北京市", ["北京"]) == pytest.approx(0.8)
    assert token_f1("在1949年", ["1949年"]) == pytest.approx(0.8)
    assert split_units(normalize_answer("東京 Tokyo 2020年")) == ["東", "京", "tokyo", "2020", "年"]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [("  The  U.S.\tArmy ", "us army"), ("An an A", ""), ("theatre", "theatre"), ("state-of-the-art", "stateoftheart")],
)
def test_normalization_follows_the_published_rules(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@settings(deadline=None)
@given(st.text())
def test_normalizing_and_splitting_never_fail_and_words_hold_no_white_space(text: str) -> None:
    normalized = normalize_answer(text)
    assert normalized == " ".join(normalized.split())
    assert all(token and not token.isspace() for token in [*split_units(normalized), *span_tokens(text)])


@settings(deadline=None)
@given(st.text(), st.text())
def test_f1_is_symmetric_and_between_zero_and_one(left: str, right: str) -> None:
    score = token_f1(left, [right])
    assert 0.0 <= score <= 1.0
    if all(comparable_forms(text)[0] for text in (left, right)) and "<" not in left + right:
        assert score == token_f1(right, [left])


@settings(deadline=None)
@given(answers)
def test_a_golden_answer_is_right_by_every_measure(golden: str) -> None:
    assert exact_match(golden, [golden])
    assert token_f1(golden, [golden]) == 1.0


@settings(deadline=None)
@given(answers, answers)
def test_composed_and_decomposed_spellings_are_equal_by_every_measure(answer: str, golden: str) -> None:
    for form in ("NFC", "NFD"):
        spelled, gold = unicodedata.normalize(form, answer), unicodedata.normalize(form, golden)
        assert exact_match(spelled, [golden]) == exact_match(answer, [gold]) == exact_match(answer, [golden])
        assert token_f1(spelled, [golden]) == token_f1(answer, [gold]) == token_f1(answer, [golden])


@pytest.mark.parametrize("empty", ["", " ", "\n", "<think>Paris</think>", "Paris</think>", "<think>Paris", "\u00a0"])
@settings(deadline=None)
@given(golden=st.text())
def test_an_empty_answer_is_never_right(empty: str, golden: str) -> None:
    for gold in (golden, "", "the", "A", "?", empty):
        assert not exact_match(empty, [gold])
        assert token_f1(empty, [gold]) == 0.0


@pytest.mark.parametrize(
    ("answer", "golden", "is_right"),
    [
        ("A", "A", True), ("(A)", "A", True), ("a.", "A", True), ("The", "A", False), ("The", "The", True),
        ("An", "A", False), ("A cat", "cat", True), ("cat", "A", False), ("+", "+", True), ("-", "+", False),
        ("?", "A", False), ("C++", "C++", True), ("<think>B?</think>A", "A", True),
    ],
)  # fmt: skip
def test_texts_that_normalization_empties_are_compared_unchanged(answer: str, golden: str, is_right: bool) -> None:
    assert exact_match(answer, [golden]) == is_right
    assert (token_f1(answer, [golden]) == 1.0) == is_right


@pytest.mark.parametrize(
    ("answer", "golden", "is_right"),
    [
        ("Yes", "True", True),
        ("true.", "yes", True),
        ("No", "false", True),
        ("yes", "False", False),
        ("true", "no", False),
    ],
)
def test_true_and_false_are_yes_and_no(answer: str, golden: str, is_right: bool) -> None:
    assert exact_match(answer, [golden]) is is_right
    assert token_f1(answer, [golden]) == float(is_right)


def test_a_multiple_choice_answer_is_exact_by_letter_or_text() -> None:
    choices = (Choice("A", "cold water"), Choice("B", "fire"))
    for answer in ("B", "(b)", "B: fire", "Fire.", "The answer is B."):
        assert exact_match(answer, ["B", "fire"], choices)
        assert token_f1(answer, ["B", "fire"], choices) == 1.0
    for answer in ("A", "A: fire", "cold water", "Vitamin B", ""):
        assert not exact_match(answer, ["B", "fire"], choices)


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
