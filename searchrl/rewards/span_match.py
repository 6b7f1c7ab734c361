"""Does a text contain a golden answer, word for word?"""

from collections.abc import Sequence

from searchrl.rewards.answer_normalization import span_tokens


def contains_answer(text: str, golden_answers: Sequence[str]) -> bool:
    """True if the tokens of a golden answer occur in a row in the text.

    Whole words only: "art" is not in "party". A golden answer without any token ("the", "?") never matches.
    """
    tokens = span_tokens(text)
    return any(_contains(tokens, span_tokens(golden)) for golden in golden_answers)


def _contains(tokens: Sequence[str], span: Sequence[str]) -> bool:
    width = len(span)
    return width > 0 and any(
        tokens[start] == span[0] and tokens[start : start + width] == span for start in range(len(tokens) - width + 1)
    )
