"""Decides whether a text states a golden answer verbatim."""

from collections.abc import Iterator, Sequence

from searchrl.rewards.answer_normalization import is_cjk, span_tokens

SHORTEST_SPAN = 4
"""Characters. Shorter answers (12, IT, Po) occur in many texts that mean something else; 4 characters admit years."""
SHORTEST_CJK_SPAN = 2
"""Characters. One Chinese or Japanese character occurs inside many words; names of two characters are common."""
NEGATION_REACH = 3
"""Tokens before a span in which a negation inverts it, such as "not in Paris" or "not the capital, Paris"."""
DOUBT_REACH = 5
"""Tokens before a span in which a doubt leaves it open: "nobody knows whether it lies in Paris"."""
ALTERNATIVE_REACH = 2
"""Tokens after a span in which an alternative or a correction follows: "Paris or Rome", "Paris is wrong"."""

# "n't" loses its apostrophe in normalization.
_NEGATIONS = frozenset(
    (
        "not", "never", "neither", "nor", "without", "except", "cannot", "isnt", "wasnt", "arent", "werent", "didnt",
        "doesnt", "dont", "hasnt", "havent", "cant", "couldnt", "wouldnt", "wont",
    )
)  # fmt: skip
# Chinese negations are here, because every character is a token.
_DOUBTS = frozenset(("whether", "doubt", "doubtful", "unlikely", "unsure", "uncertain", "不", "没", "沒", "非"))
_PREFERENCES = frozenset(("instead", "rather", "unlike"))  # "Rome, rather than Paris"
_CORRECTIONS = frozenset(("or", "no", "wrong", "incorrect", "false", *_NEGATIONS - {"nor", "without", "except"}))
_POLAR = frozenset({"yes", "no", "true", "false"})


def contains_answer(text: str, golden_answers: Sequence[str]) -> bool:
    """Return whether the tokens of a golden answer occur consecutively in the text.

    Only complete words match: "art" is not in "party". A golden answer without any token ("the", "?") never matches.
    """
    tokens = span_tokens(text)
    return any(next(span_positions(tokens, span_tokens(golden)), None) is not None for golden in golden_answers)


def states_answer(text: str, golden_answers: Sequence[str]) -> bool:
    """Return whether the text contains a golden answer for which a span is proof, without negation or doubt.

    A span is proof if the golden answer has at least ``SHORTEST_SPAN`` letters and digits (``SHORTEST_CJK_SPAN`` in
    Chinese and Japanese) and is not yes, no, true or false: "no" also occurs in "There is no information", and "C" in
    "Vitamin C deficiency". False means undecided, never wrong.
    """
    tokens = span_tokens(text)
    return any(
        not is_left_open(tokens, start, len(span))
        for golden in golden_answers
        if is_safe_span(span := span_tokens(golden))
        for start in span_positions(tokens, span)
    )


def is_safe_span(span: Sequence[str]) -> bool:
    """Return whether an occurrence of these tokens proves an answer; see ``states_answer``."""
    if len(span) == 1 and span[0] in _POLAR:
        return False
    if any(map(is_cjk, span)):
        return sum(map(len, span)) >= SHORTEST_CJK_SPAN
    return sum(character.isalnum() for token in span for character in token) >= SHORTEST_SPAN


def is_left_open(tokens: Sequence[str], start: int, width: int) -> bool:
    """Return whether the words around a span negate it, doubt it, or name an alternative to it."""
    before, behind = tokens[:start], tokens[start + width : start + width + ALTERNATIVE_REACH]
    near = before[-NEGATION_REACH:]
    return bool(
        _NEGATIONS.intersection(near)
        or _PREFERENCES.intersection(near)
        or _DOUBTS.intersection(before[-DOUBT_REACH:])
        or "or" in before[-1:]
        or _CORRECTIONS.intersection(behind)
    )


def span_positions(tokens: Sequence[str], span: Sequence[str]) -> Iterator[int]:
    """Yield the positions at which ``span`` begins in ``tokens``; none for an empty span."""
    width = len(span)
    for start in range(len(tokens) - width + 1):
        if width and tokens[start] == span[0] and tokens[start : start + width] == span:
            yield start
