"""Computes the token F1 of an answer and golden answers."""

from collections import Counter
from collections.abc import Sequence

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.answer_normalization import comparable_forms, split_units
from searchrl.rewards.exact_match import exact_match


def token_f1(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """Return the best F1 over the golden answers, in 0..1: on words, and on characters in scripts without spaces (CJK).

    Answers are compared in the same forms as by ``exact_match``; an exact match has 1, an empty answer 0.
    """
    answer = strip_thoughts(answer)
    if not answer:
        return 0.0
    if exact_match(answer, golden_answers, choices):
        return 1.0
    forms = comparable_forms(answer)
    return max((_best_form(forms, golden) for golden in golden_answers), default=0.0)


def _best_form(forms: tuple[str, str, str], golden: str) -> float:
    pairs = zip(forms, comparable_forms(golden), strict=True)
    return next((overlap_f1(split_units(mine), split_units(theirs)) for mine, theirs in pairs if theirs), 0.0)


def overlap_f1(predicted: Sequence[str], golden: Sequence[str]) -> float:
    """Return the F1 of two multisets: 1 if both are empty, 0 if only one is."""
    if not predicted or not golden:
        return float(not predicted and not golden)
    common = (Counter(predicted) & Counter(golden)).total()
    return 2 * common / (len(predicted) + len(golden))
