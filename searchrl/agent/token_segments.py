"""Labels each sampled token with the kind of its span: thought, query, selection, answer or plain action."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from searchrl.agent.ports import Tokenizer
from searchrl.domain.trajectory import TokenKind


def label_tokens(ids: Sequence[int], tokenizer: Tokenizer, tags: Mapping[str, TokenKind]) -> list[int]:
    """Return one ``TokenKind`` number per id; linear in the number of ids.

    Tokens are decoded one by one and joined, so every token owns a range of characters; a token that overlaps a tagged
    span (its tags included) gets the span's kind, any other is ``ACTION``. An unclosed span runs to the end; a span
    whose opening tag the environment wrote starts at the beginning.
    """
    pieces = [tokenizer.decode([token_id]) for token_id in ids]
    labels = [int(TokenKind.ACTION)] * len(pieces)
    spans = find_spans("".join(pieces), tags)
    position = 0
    current = 0
    for index, piece in enumerate(pieces):
        end = position + len(piece)
        while current < len(spans) and spans[current][1] <= position:
            current += 1
        if current < len(spans) and spans[current][0] < end:
            labels[index] = int(spans[current][2])
        position = end
    return labels


def find_spans(text: str, tags: Mapping[str, TokenKind]) -> list[tuple[int, int, TokenKind]]:
    """Return the tagged spans of ``text`` as (start, end, kind): disjoint, in order, nested tags ignored."""
    if not tags:
        return []
    spans: list[tuple[int, int, TokenKind]] = []
    opened: tuple[int, str] | None = None
    for match in _tag_pattern(tuple(tags)).finditer(text):
        closing, name = bool(match[1]), match[2]
        if opened is None and not closing:
            opened = (match.start(), name)
        elif opened is None and not spans:
            spans.append((0, match.end(), tags[name]))
        elif opened is not None and closing and opened[1] == name:
            spans.append((opened[0], match.end(), tags[name]))
            opened = None
    if opened is not None:
        spans.append((opened[0], len(text), tags[opened[1]]))
    return spans


@lru_cache(maxsize=16)  # one entry per protocol in use; compiling in every turn would be wasted work
def _tag_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<(/?)({'|'.join(map(re.escape, names))})>")
