"""Provides a text that records which of its characters came from outside: from passages, questions or answers."""

from typing import SupportsIndex

Span = tuple[int, int]


class GuardedText(str):
    """A ``str`` with the ranges of its untrusted characters, in which tokenizers must not produce control tokens.

    Every operation of ``str`` except those below returns a plain ``str``, which counts as trusted. A text that is sent
    to a model must therefore be assembled with ``join_parts``.

    Attributes:
        untrusted: (start, end) character ranges, disjoint and ascending; never empty ranges.
    """

    untrusted: tuple[Span, ...]

    def __new__(cls, text: str, untrusted: tuple[Span, ...] = ()) -> "GuardedText":
        # str is immutable: its value is set in __new__, and the ranges with it.
        guarded = super().__new__(cls, text)
        guarded.untrusted = untrusted
        return guarded

    @classmethod
    def from_outside(cls, text: str) -> "GuardedText":
        """Return a text that is untrusted from its first to its last character."""
        return cls(text, ((0, len(text)),) if text else ())

    @classmethod
    def join_parts(cls, *parts: str) -> "GuardedText":
        """Concatenate the parts; plain strings are trusted."""
        spans: list[Span] = []
        position = 0
        for part in parts:
            spans.extend((start + position, end + position) for start, end in untrusted_spans(part))
            position += len(part)
        return cls("".join(parts), tuple(spans))

    def strip(self, chars: str | None = None, /) -> "GuardedText":
        """Strip as ``str.strip`` does, keeping the untrusted ranges."""
        kept = super().strip(chars)
        # str.strip returns a plain str, so the result is cut out of this text by its position, which keeps the ranges.
        start = len(self) - len(super().lstrip(chars)) if kept else 0
        return self[start : start + len(kept)]

    def __getitem__(self, key: SupportsIndex | slice, /) -> "GuardedText":
        """Return a character or slice; only a slice without a step keeps the untrusted ranges."""
        if not isinstance(key, slice) or key.step not in (None, 1):
            return GuardedText(super().__getitem__(key))
        start, stop, _ = key.indices(len(self))
        # Ranges are clamped to the slice; those outside it become empty or negative and are dropped below.
        spans = ((max(a, start) - start, min(b, stop) - start) for a, b in self.untrusted)
        return GuardedText(super().__getitem__(key), tuple((a, b) for a, b in spans if a < b))


def untrusted_spans(text: str) -> tuple[Span, ...]:
    """Return the untrusted ranges of a text; a plain ``str`` has none."""
    return text.untrusted if isinstance(text, GuardedText) else ()
