"""Decides whether an answer equals a golden answer (exact match)."""

from collections.abc import Sequence

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.answer_normalization import comparable_forms
from searchrl.rewards.choice_match import find_choice, is_golden_choice
from searchrl.rewards.polarity import polarity_of_golden


def exact_match(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> bool:
    """Return whether the answer equals a golden answer, in the first of ``comparable_forms`` that is not empty.

    Thoughts are not part of the answer, and an empty answer equals nothing. "True" and "yes" are equal, as are "false"
    and "no". With ``choices`` the option that the answer picks counts: "(B)", "B: fire", "The answer is B" are equal.
    """
    answer = strip_thoughts(answer)
    if not answer:
        return False
    if choices:
        chosen = find_choice(answer, choices)
        return chosen is not None and is_golden_choice(chosen, golden_answers, choices)
    polarity = polarity_of_golden(answer)
    if polarity is not None and polarity in map(polarity_of_golden, golden_answers):
        return True
    forms = comparable_forms(answer)
    return any(_equals(forms, golden) for golden in golden_answers)


def _equals(forms: tuple[str, str, str], golden: str) -> bool:
    pairs = zip(forms, comparable_forms(golden), strict=True)
    return next((mine == theirs for mine, theirs in pairs if theirs), False)
