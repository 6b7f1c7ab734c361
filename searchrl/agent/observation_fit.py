"""Cuts the documents of an observation until the observation fits its token budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from searchrl.agent.document_cut import cut_to_fit, least_useful
from searchrl.agent.ports import Tokenizer
from searchrl.agent.protocol import SearchProtocol
from searchrl.domain.passage import SearchResult

Results = tuple[tuple[SearchResult, ...], ...]


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
        ids = ids[:max_tokens]
        return FittedResults(shown, shown, uncut, tokenizer.decode(ids), ids)
    while any(shown):
        displayed = _cut_texts(shown, protocol, tokenizer, max_tokens)
        if displayed is not None:
            text = protocol.render_results(displayed)
            cut = tuple(_cut_positions(found, seen) for found, seen in zip(shown, displayed, strict=True))
            return FittedResults(shown, displayed, cut, text, tokenizer.encode(text))
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
    longest = max(range(len(shown)), key=lambda index: (len(shown[index]), index))
    found = shown[longest]
    left_out = least_useful([result.passage.text for result in found])
    return (*shown[:longest], (*found[:left_out], *found[left_out + 1 :]), *shown[longest + 1 :])
