"""Cuts the longest of several texts until all of them fit a budget; short texts stay complete."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CUT_MARK = " ..."
"""Marks a text as cut, so that a reader does not take its last words for the end of the document."""
LEAST_CHARACTERS = 80
"""About one sentence: less of a document is not worth the tokens of its header."""
RESOLUTION = 8
"""Characters a document may lose beyond what is needed. The search stops at this width because each further halving
costs one pass of the tokenizer over all the texts."""


@dataclass(frozen=True, slots=True)
class CutTexts:
    """Texts that fit together, and the indices of those that were cut."""

    texts: tuple[str, ...]
    cut: tuple[int, ...]


def cut_to_fit(
    texts: Sequence[str], fits: Callable[[Sequence[str]], bool], least: int = LEAST_CHARACTERS
) -> CutTexts | None:
    """Shorten every text to the same length, the greatest at which ``fits`` accepts them all.

    The lengths are doubled first and then bisected: with 80 characters as the least, ``fits`` is asked about 80, 160,
    320, ... until one fails, so it never sees more than about twice what fits, even if a text is huge.
    Returns None if they do not fit with ``least`` characters each; ``least_useful`` then names the one to leave out.
    """
    longest = max(map(len, texts), default=0)
    if not fits(_shorten_all(texts, least)):
        return None
    low, high = least, 2 * least
    while high < longest and fits(_shorten_all(texts, high)):
        low, high = high, 2 * high
    if high >= longest:
        if fits(texts):
            return CutTexts(tuple(texts), ())
        high = longest
    while high - low > RESOLUTION:
        middle = (low + high) // 2
        if fits(_shorten_all(texts, middle)):
            low = middle
        else:
            high = middle
    kept = _shorten_all(texts, low)
    return CutTexts(tuple(kept), tuple(index for index, text in enumerate(kept) if text is not texts[index]))


def least_useful(texts: Sequence[str]) -> int:
    """Return the index of the text to leave out if not all can be shown: the last long one, else the last one."""
    long = [index for index, text in enumerate(texts) if len(text) > LEAST_CHARACTERS]
    return long[-1] if long else len(texts) - 1


def shorten(text: str, length: int) -> str:
    """Return the text unchanged if it is short enough, else its first ``length`` characters and ``CUT_MARK``.

    The cut moves back to the end of a word if that costs less than a quarter of the length.
    """
    if len(text) <= length:
        return text
    head = text[:length]
    words = head.rsplit(None, 1) if not text[length].isspace() else [head]
    if len(words) == 2 and len(words[0]) > length * 3 // 4:
        head = words[0]
    return head.rstrip() + CUT_MARK


def _shorten_all(texts: Sequence[str], length: int) -> list[str]:
    return [shorten(text, length) for text in texts]
