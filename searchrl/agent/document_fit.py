"""Fits documents into a token budget: cuts the longest texts to one length, and leaves documents out only at last."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from searchrl.agent.protocols.base import SearchProtocol
from searchrl.agent.types import Tokenizer
from searchrl.domain.passage import SearchResult

CUT_MARK = " ..."
"""Marks a text as cut, so that a reader does not take its last words for the end of the document."""
LEAST_CHARACTERS = 80
"""About one sentence: less of a document is not worth the tokens of its header."""
RESOLUTION = 8
"""Characters a document may lose beyond what is needed. The search stops at this width because each further halving
costs one pass of the tokenizer over all the texts."""

Results = tuple[tuple[SearchResult, ...], ...]


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
    # Token counts are only nearly monotone in the length: a cut can move back to a word's end, and its mark costs
    # tokens. The bisection may therefore miss the greatest length by a few characters, but it returns only what fits
    # accepted.
    longest = max(map(len, texts), default=0)
    if not fits(_shorten_all(texts, least)):
        return None
    # Invariant from here on: every text fits at length low; at length high not, or high was not tried.
    low, high = least, 2 * least
    while high < longest and fits(_shorten_all(texts, high)):
        low, high = high, 2 * high
    # No text is cut at this length, so one question about the uncut texts replaces the last doubling.
    if high >= longest:
        if fits(texts):
            return CutTexts(tuple(texts), ())
        high = longest
    # Example: 1,800 characters of each text fit. Doubling asks about 80, 160, ..., 2560 (6 passes of the tokenizer),
    # and bisecting 1280..2560 down to a width of 8 takes 8 more.
    while high - low > RESOLUTION:
        middle = (low + high) // 2
        if fits(_shorten_all(texts, middle)):
            low = middle
        else:
            high = middle
    kept = _shorten_all(texts, low)
    # _shorten_all returns a text that is short enough as the same object, so identity tells the cut ones.
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
    # White space behind the cut means that the head ends with a complete word already.
    words = head.rsplit(None, 1) if not text[length].isspace() else [head]
    if len(words) == 2 and len(words[0]) > length * 3 // 4:
        head = words[0]
    return head.rstrip() + CUT_MARK


def _shorten_all(texts: Sequence[str], length: int) -> list[str]:
    return [shorten(text, length) for text in texts]


@dataclass(frozen=True, slots=True)
class FittedResults:
    """The part of a search's results that is shown to the policy.

    Attributes:
        results: the results that are shown, with their texts as found.
        displayed: the same with their texts as shown.
        cut: for each list, the 1-based positions of the documents whose text was cut.
        text: what the policy reads.
        ids: the tokens of ``text``.
    """

    results: Results
    displayed: Results
    cut: tuple[tuple[int, ...], ...]
    text: str
    ids: list[int]


def fit_results(
    results: Sequence[Sequence[SearchResult]], protocol: SearchProtocol, tokenizer: Tokenizer, max_tokens: int
) -> FittedResults:
    """Fit the results into ``max_tokens`` tokens of one observation.

    If they are longer, the longest texts are cut to one common length. Only if this leaves less than a sentence of each
    is a document of the longest list dropped (of the later list, if equal), its last long one first; with no document
    left the empty block is shown whatever its length. A protocol that cuts tokens instead keeps every document and
    loses the end of the text.
    """
    shown = tuple(tuple(found) for found in results)
    text = protocol.render_results(shown)
    ids = tokenizer.encode(text)
    uncut = tuple(() for _ in shown)
    if len(ids) <= max_tokens:
        return FittedResults(shown, shown, uncut, text, ids)
    if not protocol.rules.cuts_documents:
        # The text is decoded from the kept ids, so that the transcript holds exactly what the policy reads.
        ids = ids[:max_tokens]
        return FittedResults(shown, shown, uncut, tokenizer.decode(ids), ids)
    # Every round drops one document, so this ends.
    while any(shown):
        displayed = _cut_texts(shown, protocol, tokenizer, max_tokens)
        if displayed is not None:
            text = protocol.render_results(displayed)
            cut = tuple(_cut_positions(found, seen) for found, seen in zip(shown, displayed, strict=True))
            return FittedResults(shown, displayed, cut, text, tokenizer.encode(text))
        # Even a sentence of each is too much. Dropping one document lets the others keep a useful length.
        shown = _drop_one(shown)
    text = protocol.render_results(shown)
    return FittedResults(shown, shown, uncut, text, tokenizer.encode(text))


def _cut_texts(shown: Results, protocol: SearchProtocol, tokenizer: Tokenizer, max_tokens: int) -> Results | None:
    def fits(texts: Sequence[str]) -> bool:
        return len(tokenizer.encode(protocol.render_results(_replace_texts(shown, texts)))) <= max_tokens

    cut = cut_to_fit([result.passage.text for found in shown for result in found], fits)
    return None if cut is None else _replace_texts(shown, cut.texts)


def _replace_texts(shown: Results, texts: Sequence[str]) -> Results:
    """Return the results with their texts replaced, one text for each result in order."""
    remaining: Iterator[str] = iter(texts)
    return tuple(
        tuple(replace(result, passage=replace(result.passage, text=next(remaining))) for result in found)
        for found in shown
    )


def _cut_positions(found: Sequence[SearchResult], displayed: Sequence[SearchResult]) -> tuple[int, ...]:
    pairs = enumerate(zip(found, displayed, strict=True), start=1)
    return tuple(position for position, (full, seen) in pairs if full.passage.text != seen.passage.text)


def _drop_one(shown: Results) -> Results:
    # The index breaks ties: of two equally long lists the later one gives up a document.
    longest = max(range(len(shown)), key=lambda index: (len(shown[index]), index))
    found = shown[longest]
    left_out = least_useful([result.passage.text for result in found])
    return (*shown[:longest], (*found[:left_out], *found[left_out + 1 :]), *shown[longest + 1 :])
