"""Measures one answer, and the share of the gold passages that were given to the generator."""

from collections.abc import Sequence

from searchrl.domain.question import Choice
from searchrl.rewards.answers import exact_match, token_f1


def answer_exact_match(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """1.0 if the answer equals a golden answer, or picks a golden option of ``choices``, else 0.0."""
    return float(exact_match(answer, golden_answers, choices))


def answer_f1(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """Best F1 over the golden answers, on tokens, or on characters of text written without spaces (CJK)."""
    return float(token_f1(answer, golden_answers, choices))


def gold_recall(documents: Sequence[str], gold_ids: Sequence[str]) -> float | None:
    """Share of the gold passages among the documents given to the generator; None if no gold passage is known."""
    if not gold_ids:
        return None
    gold = set(gold_ids)
    return len(gold.intersection(documents)) / len(gold)
