"""Is an answer the same as a golden one?"""

from collections.abc import Sequence

from searchrl.rewards.answer_normalization import normalize_answer


def exact_match(answer: str, golden_answers: Sequence[str]) -> bool:
    """True if the normalised answer equals a normalised golden answer."""
    normalized = normalize_answer(answer)
    return any(normalize_answer(golden) == normalized for golden in golden_answers)
