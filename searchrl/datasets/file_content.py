"""Opens a question file safely and detects its format by its first bytes.

A caller may name any path, so nothing is trusted: only regular files are opened, and their unpacked size is bounded.
"""

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

from searchrl.errors import InvalidRequest, NotFound, TooLarge
from searchrl.input_files import IS_POINTER, LFS_HEADER

MAX_FILE_BYTES = 4 << 30
"""Unpacked size. The largest sets in use (TriviaQA with its evidence, s3's prompts with documents) take 1 to 2 GiB."""
MAX_DOCUMENT_BYTES = 1 << 30
"""A JSON array or object is parsed in one piece and takes several times its size; HotpotQA's takes 0.6 GiB."""
MAX_ROW_BYTES = 64 << 20
"""Size of one line. A row with all its documents is below 1 MiB."""
MAX_RATIO = 100
"""Unpacked to packed size, beyond ``RATIO_FREE_BYTES``. Text has a ratio of 3 to 20; a gzip bomb reaches 1,000.
Of a bomb of 1 MiB no more than about 100 MiB are unpacked."""
RATIO_FREE_BYTES = 16 << 20
"""Unpacked bytes before ``MAX_RATIO`` applies: so little does no harm, and a small repetitive file may exceed the
ratio."""

Kind = Literal["text", "parquet"]
"""Format of the content. Text is JSON or a table; see ``table_records``."""
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_FOREIGN = {
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it, or use gzip",
    b"BZh": "is compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "is compressed with xz; unpack it, or use gzip",
    b"ARROW1": "is an Arrow file; save it as parquet",
    LFS_HEADER: IS_POINTER,
}
_FIRST_BYTES = 24
"""At least the longest signature above, that of a Git LFS pointer."""
_CHUNK_BYTES = 1 << 20
"""Read at once. The limits are checked after each chunk, so they are exceeded in memory by at most this much."""


@dataclass(slots=True)
class FileContent:
    """An open question file.

    Attributes:
        stream: its bytes, unpacked.
        kind: detected by the first bytes; the file's name does not matter.
    """

    path: Path
    stream: BinaryIO
    kind: Kind
    _raw: io.BufferedReader
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _bytes_read: int = 0

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, split at line feeds alone: U+2028 and form feeds are part of a text.

        The first line may be a complete JSON value, which has the larger limit ``MAX_DOCUMENT_BYTES``.

        Raises:
            InvalidRequest: the file cannot be unpacked.
            TooLarge: a line or the file is over its limit.
        """
        limit = MAX_DOCUMENT_BYTES if self.begins_a_value() else MAX_ROW_BYTES
        while line := self._line(limit):
            yield line
            limit = MAX_ROW_BYTES

    def begins_a_value(self) -> bool:
        """Return whether the first character is that of a JSON array or object; call it before anything is read."""
        return _peek(self.path, self.stream).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")

    def rewind(self) -> None:
        """Return to the first byte, after a line of a table was read.

        Raises:
            InvalidRequest: the file cannot be read.
        """
        try:
            self.stream.seek(0)
        except OSError as error:
            raise InvalidRequest(f"{self.path} cannot be read: {error}") from error
        # What was read before counts neither for the limits nor for the fingerprint.
        self._digest = hashlib.sha256()
        self._bytes_read = 0

    def rest(self) -> bytes:
        """Return the unread part of the file, which belongs to one JSON value.

        Raises:
            InvalidRequest: the file cannot be unpacked.
            TooLarge: it is more than ``MAX_DOCUMENT_BYTES``.
        """
        parts, size = [], 0
        while part := self._read(lambda: self.stream.read(_CHUNK_BYTES)):
            parts.append(part)
            size += len(part)
            if size > MAX_DOCUMENT_BYTES:
                raise TooLarge(
                    f"{self.path} is one JSON value of over {MAX_DOCUMENT_BYTES >> 30} GiB; "
                    "write one question a line (.jsonl)"
                )
        return b"".join(parts)

    def sha256(self) -> str:
        """Return the fingerprint of the content: of the unpacked text read so far, or of a complete parquet file."""
        if self.kind == "parquet":
            # A parquet file is read out of order, by column and row group, so its bytes cannot be hashed on the way.
            self._raw.seek(0)
            return hashlib.file_digest(self._raw, "sha256").hexdigest()
        return self._digest.hexdigest()

    def close(self) -> None:
        self.stream.close()
        self._raw.close()

    def _line(self, limit: int) -> bytes:
        parts, size = [], 0
        while part := self._read(lambda: self.stream.readline(_CHUNK_BYTES)):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise TooLarge(f"{self.path}: a line is over {limit >> 20} MiB")
            if part.endswith(b"\n"):
                break
        return b"".join(parts)

    def _read(self, read: Callable[[], bytes]) -> bytes:
        """Read at most one chunk and check the unpacked size so far."""
        try:
            content = read()
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidRequest(f"{self.path} cannot be read: {error}") from error
        self._bytes_read += len(content)
        if self._bytes_read > MAX_FILE_BYTES:
            raise TooLarge(f"{self.path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB")
        # tell() of the raw file is the number of packed bytes consumed. For a file that is not packed it is at least
        # the number of bytes read, so the ratio never applies.
        if self._bytes_read > RATIO_FREE_BYTES and self._bytes_read > MAX_RATIO * max(self._raw.tell(), 1):
            raise TooLarge(f"{self.path} unpacks to more than {MAX_RATIO} times its size")
        self._digest.update(content)
        return content


def open_question_file(path: Path) -> FileContent:
    """Open a question file and detect its format.

    Raises:
        NotFound: there is no such file, or it is not a regular file.
        InvalidRequest: it cannot be read, or has a format that is not supported.
    """
    raw = _open_regular(path)
    try:
        stream = _unpack(raw)
        first = _peek(path, stream)
        # The marks are looked for in the unpacked stream, because a gzip file may hold any of these formats.
        for mark, sentence in _FOREIGN.items():
            if first.startswith(mark):
                raise InvalidRequest(f"{path} {sentence}")
        kind: Kind = "parquet" if first.startswith(_PARQUET) else "text"
        if kind == "parquet" and stream is not raw:
            raise InvalidRequest(f"{path} is a packed parquet file; unpack it (parquet compresses by itself)")
    # Also for KeyboardInterrupt: nobody else has the open file yet, so nobody else would close it.
    except BaseException:
        raw.close()
        raise
    return FileContent(path, stream, kind, raw)


def _open_regular(path: Path) -> io.BufferedReader:
    try:
        # Without O_NONBLOCK, opening a named pipe without a writer would block forever. The type is checked on the
        # open descriptor rather than the path, so the file cannot be exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no question file {path}") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(f"there is no question file {path}: it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _unpack(raw: io.BufferedReader) -> BinaryIO:
    """Return the unpacked stream of a gzip file, which may have several members; other streams unchanged."""
    if raw.peek(2)[:2] != _GZIP:
        return raw
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw))))


def _peek(path: Path, stream: BinaryIO) -> bytes:
    try:
        return cast(io.BufferedReader, stream).peek(_FIRST_BYTES)[:_FIRST_BYTES]
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
