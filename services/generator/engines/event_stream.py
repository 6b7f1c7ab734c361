"""Splits a stream of bytes into complete server-sent events, and removes the thoughts from a streamed reply."""

import re

import orjson

from searchrl.domain.thoughts import starts_inside_thought, strip_thoughts
from searchrl.errors import Unavailable

MAX_EVENT_BYTES = 16 << 20
"""Limit of one event; a chunk with the log-probabilities of an entire reply is far smaller."""
# An event ends with an empty line; lines end with \n, \r\n or \r. The second one covers \r\n\r\n.
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_MAY_HOLD_TAG = re.compile(r"[<\[◁]")
# The beginning of what may become the tag of a thought; see searchrl.domain.thoughts.
_UNFINISHED_TAG = re.compile(
    r"(?:(?:<\|start\|>[a-z]{0,9})?(?:<\|channel\|?>[^<>\n]{0,60})?<[|/\s]*[A-Za-z_:]*[|\s]*"
    r"|(?:<\|start\|>[a-z]{0,9})?<\|channel\|?>[^<>\n]{0,60}|<\|start\|>[a-z]{0,9}|\[/?[A-Z]*|◁/?[a-z]*)\Z"
)


class EventBuffer:
    """Holds back the event that is not complete yet."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, part: bytes) -> bytes:
        """Return the events that ``part`` completes, byte for byte; empty if there are none.

        Raises:
            Unavailable: an event is larger than any real one.
        """
        # One example, with parts as TCP happens to cut them:
        #   part          returned               kept
        #   data: {"a     -                      data: {"a
        #   ":1}\n        -                      data: {"a":1}\n
        #   \ndata: {     data: {"a":1}\n\n       data: {
        # So whatever a client receives ends with a complete event, and an error can be added as an event of its own.
        held = self._rest + part
        # Only the new bytes, and an end that they complete (3 bytes at most), have to be searched.
        start = max(0, len(self._rest) - 3)
        end = max((at + len(mark) for mark in _ENDS if (at := held.rfind(mark, start)) >= 0), default=0)
        self._rest = held[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise Unavailable(f"an event of the engine's stream is over {MAX_EVENT_BYTES} bytes", None)
        return held[:end]

    def rest(self) -> bytes:
        """Return what is left at the end of the stream; some servers omit the last empty line."""
        rest, self._rest = self._rest, b""
        return rest


def split_data(events: bytes) -> list[bytes]:
    """Return the data of each event that has data."""
    found: list[bytes] = []
    lines: list[bytes] = []
    # The empty line added at the end completes an event whose own empty line the server omitted.
    for line in [*events.splitlines(), b""]:
        # Other fields (event, id, retry) and comments (": ping", which proxies and servers send to keep a connection
        # open) carry no part of a reply.
        if line.startswith(b"data:"):
            lines.append(line[5:].strip())
        elif not line and lines:
            found.append(b"\n".join(lines))
            lines = []
    return found


def parse_chunk(data: bytes) -> dict[str, object]:
    """Parse a chunk.

    Raises:
        Unavailable: it is no JSON object, so the rest of the stream cannot be trusted.
    """
    try:
        chunk = orjson.loads(data)
    except ValueError as error:
        raise Unavailable("a chunk of the engine's stream cannot be read", None) from error
    if not isinstance(chunk, dict):
        raise Unavailable("a chunk of the engine's stream is no object", None)
    return chunk


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
        # Most replies hold no thought. While no piece has a character that can begin a tag, the patterns of thoughts
        # are not run: strip_thoughts searches the entire text, which for every piece of a long reply would be quadratic
        # work.
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
        # "4 <" may become "4 <think>": what could be the beginning of a tag is held back until the next piece decides.
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
            # Right after such a tag ``shown`` is still empty, the prefix of everything; the first text of the answer
            # follows.
            if self._emitted.startswith(shown):
                return ""
            self._emitted = ""
        new = shown[len(self._emitted) :]
        self._emitted = shown
        return new
