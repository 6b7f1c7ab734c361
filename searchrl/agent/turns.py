"""Derives the seed of each turn of a rollout, and labels the kinds of its sampled tokens.

Turns need seeds of their own: with one seed for all, every turn would draw the same random numbers. The derivation is
fixed, so a rollout can be repeated in another process.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from searchrl.agent.types import Tokenizer
from searchrl.domain.trajectory import TokenKind

_MASK_64 = (1 << 64) - 1  # Python's integers do not wrap; SplitMix64 works modulo 2**64
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, SplitMix64's increment: multiples of it are spread evenly over 64 bits."""


def turn_seed(seed: int | None, turn: int, attempt: int = 0) -> int | None:
    """Return the seed of one ``generate`` call; None if the rollout has none.

    ``mix(mix(seed + (turn + 1) * gamma) + attempt * gamma) >> 1`` modulo 2**64, where ``gamma`` is the golden-ratio
    constant and ``mix`` the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). The result is in 0..2**63-1.
    ``attempt`` counts the continuations of a turn that the engine aborted.
    """
    if seed is None:
        return None
    # The shift leaves 63 bits: vLLM's HTTP API takes seeds up to 2**63 - 1 only.
    return _mix(_mix(seed + (turn + 1) * _GOLDEN_GAMMA) + attempt * _GOLDEN_GAMMA) >> 1


def _mix(value: int) -> int:
    # Shifts and multipliers are SplitMix64's (Stafford's variant 13); other values would give other seeds.
    value &= _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def label_tokens(ids: Sequence[int], tokenizer: Tokenizer, tags: Mapping[str, TokenKind]) -> list[int]:
    """Return one ``TokenKind`` number per id; linear in the number of ids.

    Tokens are decoded one by one and joined, so every token owns a range of characters; a token that overlaps a tagged
    span (its tags included) gets the span's kind, any other is ``ACTION``. An unclosed span runs to the end; a span
    whose opening tag the environment wrote starts at the beginning.
    """
    # A character split over several tokens gives replacement characters here, and some decoders drop the leading blank
    # of a lone token. Both are harmless: offsets are counted in the same pieces, and tags are ASCII without blanks.
    pieces = [tokenizer.decode([token_id]) for token_id in ids]
    labels = [int(TokenKind.ACTION)] * len(pieces)
    spans = find_spans("".join(pieces), tags)
    # Pieces and spans are both in order, so one pass with an index into each is enough:
    #   pieces   a|x<|query>b|</query>|c
    #   spans       [---- query -----]      "x<" overlaps the tag, so it is a query token
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
    # A span ends at the first closing tag of its own name; any other tag inside it is text of the span.
    spans: list[tuple[int, int, TokenKind]] = []
    opened: tuple[int, str] | None = None
    for match in _tag_pattern(tuple(tags)).finditer(text):
        closing, name = bool(match[1]), match[2]
        if opened is None and not closing:
            opened = (match.start(), name)
        elif opened is None and not spans:
            # A closing tag comes first: the environment wrote the opening one (see s3's reply to an invalid turn).
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
