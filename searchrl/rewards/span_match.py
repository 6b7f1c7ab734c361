"""Decides whether a text states a golden answer verbatim."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

from searchrl.rewards.answer_normalization import is_cjk, span_tokens

SHORTEST_SPAN = 4
"""Characters. Shorter answers (12, IT, Po) occur in many texts that mean something else; 4 characters admit years."""
SHORTEST_CJK_SPAN = 2
"""Characters. One Chinese or Japanese character occurs inside many words; names of two characters are common."""
PREFERENCE_REACH = 3
"""Tokens before a span in which a preference for something else excludes it: "Rome, rather than the city of Paris"."""
ALTERNATIVE_REACH = 2
"""Tokens after a span in which an alternative or a correction follows: "Paris or Rome", "Paris is wrong"."""

# "n't" loses an ASCII apostrophe in normalization; the typographic one is a token: "isn’t" gives "isn", "’", "t".
_APOSTROPHE_T = ("’", "t")
_NEGATIONS = frozenset(
    (
        "not", "never", "neither", "nor", "without", "except", "cannot", "isnt", "wasnt", "arent", "werent", "didnt",
        "doesnt", "dont", "hadnt", "hasnt", "havent", "cant", "couldnt", "shouldnt", "wouldnt", "wont",
        "不", "没", "沒", "非",  # in Chinese every character is a token
    )
)  # fmt: skip
_DOUBTS = frozenset(("whether", "doubt", "doubtful", "unlikely", "unsure", "uncertain"))
# A contrast ends a negation if one of these words or the span follows:
# "not in Rome but in Paris", "not Rome but Paris". In "not in the poor but
# beautiful city of Paris" it joins two words, and the negation continues.
_CONTRASTS = frozenset(("but", "但", "而"))
_RESUMPTIONS = frozenset(
    (
        "it", "he", "she", "they", "i", "we", "this", "that", "is", "was", "are", "were", "lies", "rather", "instead",
        "in", "at", "on", "of", "from", "by", "to", "for", "是", "在", "他", "她", "它",
    )
)  # fmt: skip
# "Africa" and "very" are words with a character that negates elsewhere.
_NO_NEGATIONS = frozenset((("非", "洲"), ("非", "常")))
_PREFERENCES = frozenset(("instead", "rather", "unlike"))  # "Rome, rather than Paris"
_CORRECTIONS = frozenset(("or", "no", "wrong", "incorrect", "false", *_NEGATIONS - {"nor", "without", "except", "非"}))
# A full stop after a short word may belong to an abbreviation: "not in St. Louis", "not of the U.S. Army". Taking a
# sentence for the rest of the one before costs a call of the judge; the opposite would take "not" away from its span.
_SENTENCE_END = re.compile(
    r"""(?<=[!?;])["”'’)*\]]*\s+|(?<=\w{4}\.)(?<!(?:Prof|Capt|Dept|Univ)\.)["”'’)*\]]*\s+(?![a-z\s])|(?<=[。！？；])"""
)
_POLAR = frozenset({"yes", "no", "true", "false"})


@dataclass(frozen=True, slots=True)
class SentenceTokens:
    """The tokens of a text, and the positions at which its sentences begin."""

    tokens: Sequence[str]
    starts: Sequence[int]

    @classmethod
    def of(cls, text: str) -> Self:
        cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
        sentences = [span_tokens(text[first:last]) for first, last in pairwise(cuts)]
        # One start more than sentences: the last one lies behind the last token. Empty sentences have equal starts, of
        # which bisect_right takes the last.
        starts = accumulate(map(len, sentences), initial=0)
        return cls([token for sentence in sentences for token in sentence], list(starts))

    def before(self, position: int) -> Sequence[str]:
        """Return the tokens of the same sentence before a position."""
        return self.tokens[self.starts[bisect_right(self.starts, position) - 1] : position]


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
    sentences = SentenceTokens.of(text)
    return any(
        not is_left_open(sentences, start, len(span))
        for golden in golden_answers
        if is_safe_span(span := span_tokens(golden))
        for start in span_positions(sentences.tokens, span)
    )


def is_safe_span(span: Sequence[str]) -> bool:
    """Return whether an occurrence of these tokens proves an answer; see ``states_answer``."""
    if len(span) == 1 and span[0] in _POLAR:
        return False
    if any(map(is_cjk, span)):
        return sum(map(len, span)) >= SHORTEST_CJK_SPAN
    return sum(character.isalnum() for token in span for character in token) >= SHORTEST_SPAN


def is_left_open(sentences: SentenceTokens, start: int, width: int) -> bool:
    """Return whether the words around a span negate it, doubt it, or name an alternative to it.

    A negation or a doubt counts wherever it stands before the span in the same sentence, since what it governs may end
    late: "not in the northern suburbs of Paris". Only a contrast ends a negation: "not in Rome but in Paris".
    """
    before, end = sentences.before(start), start + width
    return bool(
        _is_negated(before)
        or _DOUBTS.intersection(before)
        or _PREFERENCES.intersection(before[-PREFERENCE_REACH:])
        or "or" in before[-1:]
        or _CORRECTIONS.intersection(sentences.tokens[end : end + ALTERNATIVE_REACH])
        or _APOSTROPHE_T in pairwise(sentences.tokens[end : end + ALTERNATIVE_REACH + 1])
    )


def _is_negated(before: Sequence[str]) -> bool:
    """Return whether the last negation in these words still governs what follows them."""
    # Read from left to right: a contrast ends every negation before it, and a later word can negate again.
    negated = False
    for token, following in pairwise([*before, ""]):  # "" is the span
        if token in _NEGATIONS or (token, following) == _APOSTROPHE_T:
            negated = negated or (token, following) not in _NO_NEGATIONS
        elif token in _CONTRASTS and (not following or following in _RESUMPTIONS):
            negated = False
    return negated


def span_positions(tokens: Sequence[str], span: Sequence[str]) -> Iterator[int]:
    """Yield the positions at which ``span`` begins in ``tokens``; none for an empty span."""
    # The first token is compared before the slice is built: most positions fail there, and texts are long.
    width = len(span)
    for start in range(len(tokens) - width + 1):
        if width and tokens[start] == span[0] and tokens[start : start + width] == span:
            yield start
