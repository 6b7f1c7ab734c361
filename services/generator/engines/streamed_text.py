"""Passes the text of a streamed reply on without the thoughts in it."""

import re

from searchrl.domain.thoughts import starts_inside_thought, strip_thoughts

_MAY_HOLD_TAG = re.compile(r"[<\[◁]")
# The beginning of what may become a tag of a thought; see searchrl.domain.thoughts.
_UNFINISHED_TAG = re.compile(
    r"(?:(?:<\|start\|>[a-z]{0,9})?(?:<\|channel\|?>[^<>\n]{0,60})?<[|/\s]*[A-Za-z_:]*[|\s]*"
    r"|(?:<\|start\|>[a-z]{0,9})?<\|channel\|?>[^<>\n]{0,60}|<\|start\|>[a-z]{0,9}|\[/?[A-Z]*|◁/?[a-z]*)\Z"
)


class StreamedText:
    """Takes pieces of a reply and gives those of its answer.

    What was given so far is always a beginning of ``strip_thoughts`` of the reply, whatever the pieces are, with one
    exception: a thought that only a closing tag betrays has been given by then. ``held`` prevents that: nothing is
    given before such a tag, or the end.
    """

    def __init__(self, held: bool = False) -> None:
        self._held = held
        self._raw = ""
        self._given = ""
        self._is_plain = not held

    @property
    def raw(self) -> str:
        """Everything that was taken."""
        return self._raw

    def add(self, piece: str) -> str:
        """Take a piece; return the text that may be shown now."""
        self._raw += piece
        if self._held and not starts_inside_thought(self._raw):
            return ""
        if self._is_plain and not _MAY_HOLD_TAG.search(piece):
            return self._give_plain()
        self._is_plain = False
        known = _UNFINISHED_TAG.sub("", self._raw)
        return self._give(strip_thoughts(known))

    def finish(self) -> str:
        """The text that was held back until the end."""
        return self._give(strip_thoughts(self._raw))

    def _give_plain(self) -> str:
        """Without any tag the text is itself; white space at the end may be the last of it."""
        shown = self._raw.strip()
        return self._give(shown)

    def _give(self, shown: str) -> str:
        """What ``shown`` adds to the text given so far."""
        if not shown.startswith(self._given):  # the text so far was a thought, as its closing tag shows now
            if self._given.startswith(shown):
                return ""
            self._given = ""
        new = shown[len(self._given) :]
        self._given = shown
        return new
