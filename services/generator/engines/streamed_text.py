"""Removes the thoughts from the text of a streamed reply."""

import re

from searchrl.domain.thoughts import starts_inside_thought, strip_thoughts

_MAY_HOLD_TAG = re.compile(r"[<\[◁]")
# The beginning of what may become the tag of a thought; see searchrl.domain.thoughts.
_UNFINISHED_TAG = re.compile(
    r"(?:(?:<\|start\|>[a-z]{0,9})?(?:<\|channel\|?>[^<>\n]{0,60})?<[|/\s]*[A-Za-z_:]*[|\s]*"
    r"|(?:<\|start\|>[a-z]{0,9})?<\|channel\|?>[^<>\n]{0,60}|<\|start\|>[a-z]{0,9}|\[/?[A-Z]*|◁/?[a-z]*)\Z"
)


class StreamedText:
    """Receives pieces of a reply and returns pieces of its answer.

    What was returned so far is always a prefix of ``strip_thoughts`` of the reply, however it is split into pieces,
    with one exception: a thought that only its closing tag reveals has been returned by then. ``hold_back`` prevents
    that: nothing is returned before such a tag, or the end.
    """

    def __init__(self, hold_back: bool = False) -> None:
        self._holds_back = hold_back
        self._raw = ""
        self._emitted = ""
        self._is_plain = not hold_back

    @property
    def raw(self) -> str:
        """Everything that was received."""
        return self._raw

    def add(self, piece: str) -> str:
        """Add a piece; return the text that may be shown now."""
        self._raw += piece
        if self._holds_back and not starts_inside_thought(self._raw):
            return ""
        if self._is_plain and not _MAY_HOLD_TAG.search(piece):
            return self._emit_plain()
        self._is_plain = False
        known = _UNFINISHED_TAG.sub("", self._raw)
        return self._emit(strip_thoughts(known))

    def finish(self) -> str:
        """Return the text that was held back until the end."""
        return self._emit(strip_thoughts(self._raw))

    def _emit_plain(self) -> str:
        """Return what a text without tags adds; white space at its end is held back, since the reply may end there."""
        shown = self._raw.strip()
        return self._emit(shown)

    def _emit(self, shown: str) -> str:
        """Return what ``shown`` adds to the text returned so far."""
        if not shown.startswith(self._emitted):  # its closing tag shows only now that the text so far was a thought
            if self._emitted.startswith(shown):
                return ""
            self._emitted = ""
        new = shown[len(self._emitted) :]
        self._emitted = shown
        return new
