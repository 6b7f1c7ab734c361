"""Exact match and F1 against the values of SQuAD's own evaluation script."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.answer_normalization import answer_units, comparable_forms, normalize_answer, span_tokens
from searchrl.rewards.exact_match import exact_match
from searchrl.rewards.f1 import overlap_f1, token_f1

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
    if not is_ours and answer_units(prediction) == normalize_answer(prediction).split():
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
    assert answer_units("東京 Tokyo 2020年") == ["東", "京", "tokyo", "2020", "年"]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [("  The  U.S.\tArmy ", "us army"), ("An an A", ""), ("theatre", "theatre"), ("state-of-the-art", "stateoftheart")],
)
def test_normalization(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@settings(deadline=None)
@given(st.text())
def test_normalizing_and_splitting_never_fail_and_words_hold_no_white_space(text: str) -> None:
    normalized = normalize_answer(text)
    assert normalized == " ".join(normalized.split())
    assert all(token and not token.isspace() for token in [*answer_units(text), *span_tokens(text)])


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
def test_what_normalization_leaves_nothing_of_is_compared_as_it_is(answer: str, golden: str, is_right: bool) -> None:
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
