"""How is an observation made to fit its token budget?"""

from collections.abc import Sequence

from searchrl.agent.ports import Tokenizer
from searchrl.agent.protocol import SearchProtocol
from searchrl.domain.passage import SearchResult

Results = tuple[tuple[SearchResult, ...], ...]


def fit_results(
    results: Sequence[Sequence[SearchResult]], protocol: SearchProtocol, tokenizer: Tokenizer, max_tokens: int
) -> tuple[Results, str, list[int]]:
    """Return the results that are shown, their text and its ids.

    The text is rendered and tokenised whole. While it is longer than ``max_tokens`` the last document of the longest
    list goes (of the later list, if equal); with no document left the empty block is shown whatever its length. A
    protocol that cuts tokens instead keeps every document and loses the end of the text.
    """
    shown = [tuple(found) for found in results]
    text = protocol.render_results(shown)
    ids = tokenizer.encode(text)
    if not protocol.rules.cuts_documents:
        if len(ids) > max_tokens:
            ids = ids[:max_tokens]
            text = tokenizer.decode(ids)
        return tuple(shown), text, ids
    while len(ids) > max_tokens and any(shown):
        longest = max(range(len(shown)), key=lambda index: (len(shown[index]), index))
        shown[longest] = shown[longest][:-1]
        text = protocol.render_results(shown)
        ids = tokenizer.encode(text)
    return tuple(shown), text, ids
