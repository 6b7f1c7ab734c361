"""Splits a stream of bytes into complete server-sent events."""

import orjson

from searchrl.errors import Unavailable

MAX_EVENT_BYTES = 16 << 20
"""Limit of one event; a chunk with the log-probabilities of an entire reply is far smaller."""
# An event ends with an empty line; lines end with \n, \r\n or \r. The second one covers \r\n\r\n.
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")


class EventBuffer:
    """Holds back the event that is not complete yet."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, part: bytes) -> bytes:
        """Return the events that ``part`` completes, byte for byte; empty if there are none.

        Raises:
            Unavailable: an event is larger than any real one.
        """
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
    for line in [*events.splitlines(), b""]:
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
