"""Exact match and F1 against the values of SQuAD's own evaluation script."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.rewards.answer_normalization import answer_units, normalize_answer, span_tokens
from searchrl.rewards.exact_match import exact_match
from searchrl.rewards.f1 import overlap_f1, token_f1

ROWS = [json.loads(line) for line in (Path(__file__).parent / "squad_vectors.jsonl").read_text("utf-8").splitlines()][
    1:
]


def test_all_published_rows_are_there() -> None:
    assert len(ROWS) == 17


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['prediction']}|{row['gold']}")
def test_exact_match_and_word_f1_are_those_of_squad(row: dict[str, str | float]) -> None:
    prediction, gold = str(row["prediction"]), str(row["gold"])
    assert exact_match(prediction, [gold]) == bool(row["em"])
    words = overlap_f1(normalize_answer(prediction).split(), normalize_answer(gold).split())
    assert words == pytest.approx(row["f1"], abs=1e-4)
    if answer_units(prediction) == normalize_answer(prediction).split():
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
def test_normalisation(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@settings(deadline=None)
@given(st.text())
def test_normalising_and_splitting_never_fail_and_words_hold_no_white_space(text: str) -> None:
    normalized = normalize_answer(text)
    assert normalized == " ".join(normalized.split())
    assert all(token and not token.isspace() for token in [*answer_units(text), *span_tokens(text)])


@settings(deadline=None)
@given(st.text(), st.text())
def test_f1_is_symmetric_and_between_zero_and_one(left: str, right: str) -> None:
    score = token_f1(left, [right])
    assert 0.0 <= score <= 1.0
    assert score == token_f1(right, [left])
    assert token_f1(left, [left]) == 1.0
