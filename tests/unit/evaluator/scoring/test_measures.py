"""The metrics of one answer, against values computed manually."""

import pytest

from services.evaluator.scoring.measures import answer_exact_match, answer_f1


@pytest.mark.parametrize(
    ("answer", "golden", "exact", "f1"),
    [
        ("The Beatles!", ["beatles"], 1.0, 1.0),
        ("Nidal Malik Hasan", ["Nidal Hasan"], 0.0, 0.8),  # 2 common words of 3 and 2: 2*2/(3+2)
        ("Paris, France", ["London", "paris"], 0.0, 2 / 3),  # the better golden answer: 2*1/(2+1)
        ("", ["x"], 0.0, 0.0),
        ("1,000", ["1000"], 1.0, 1.0),
        ("well known", ["well-known"], 0.0, 0.0),
        ("北京市", ["北京"], 0.0, 0.8),  # characters: 2 common of 3 and 2
        ("he is in 北京", ["北京"], 0.0, 4 / 7),  # 3 words and 2 characters against 2 characters
    ],
)
def test_exact_match_and_f1(answer: str, golden: list[str], exact: float, f1: float) -> None:
    assert answer_exact_match(answer, golden) == exact
    assert answer_f1(answer, golden) == pytest.approx(f1)
