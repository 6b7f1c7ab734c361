"""How much of an answer overlaps with a golden one?"""

from collections import Counter
from collections.abc import Sequence

from searchrl.rewards.answer_normalization import answer_units


def token_f1(answer: str, golden_answers: Sequence[str]) -> float:
    """Best F1 over the golden answers, in 0..1: on words, and on characters in scripts without spaces (CJK)."""
    units = answer_units(answer)
    return max((overlap_f1(units, answer_units(golden)) for golden in golden_answers), default=0.0)


def overlap_f1(predicted: Sequence[str], golden: Sequence[str]) -> float:
    """F1 of two multisets; two empty ones are equal, an empty and a full one have nothing in common."""
    if not predicted or not golden:
        return float(not predicted and not golden)
    common = (Counter(predicted) & Counter(golden)).total()
    return 2 * common / (len(predicted) + len(golden))
