"""Opens a question file safely and tells by its first bytes what it is.

A caller may name any path, so nothing is trusted: only regular files are opened, and what they unpack to is bounded.
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
from searchrl.git_lfs import IS_POINTER, LFS_HEADER

MAX_FILE_BYTES = 4 << 30
"""Unpacked. The largest sets in use (TriviaQA with its evidence, s3's prompts with documents) take 1 to 2 GiB."""
MAX_DOCUMENT_BYTES = 1 << 30
"""A JSON array or object is parsed in one piece and takes several times its size; HotpotQA's takes 0.6 GiB."""
MAX_ROW_BYTES = 64 << 20
"""One line. A row with all its documents is below 1 MiB."""
MAX_RATIO = 100
"""Unpacked to packed, beyond ``RATIO_FREE_BYTES``. Text packs 3 to 20 times; gzip can hide 1,000 times as much."""
RATIO_FREE_BYTES = 16 << 20

Kind = Literal["text", "parquet"]
"""Text is JSON or a table; see ``table_records``."""
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
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class FileContent:
    """An open question file.

    Attributes:
        stream: its bytes, unpacked.
        kind: by the first bytes, whatever the name says.
    """

    path: Path
    stream: BinaryIO
    kind: Kind
    _raw: io.BufferedReader
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _bytes_read: int = 0

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, split at line feeds alone: U+2028 and form feeds are part of a text.

        The first line may be a whole JSON value and then has the limit of one.

        Raises:
            InvalidRequest: the file cannot be unpacked.
            TooLarge: a line or the file is over its limit.
        """
        limit = MAX_DOCUMENT_BYTES if self._begins_a_value() else MAX_ROW_BYTES
        while line := self._line(limit):
            yield line
            limit = MAX_ROW_BYTES

    def head(self) -> bytes:
        """What the file begins with, some kilobytes, without reading it.

        Raises:
            InvalidRequest: the file cannot be unpacked.
        """
        return _peek(self.path, self.stream, io.DEFAULT_BUFFER_SIZE)

    def rest(self) -> bytes:
        """Return what has not been read yet, part of one JSON value.

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
        """The fingerprint of what was read: of the unpacked text, or of a parquet file as it is."""
        if self.kind == "parquet":
            self._raw.seek(0)
            return hashlib.file_digest(self._raw, "sha256").hexdigest()
        return self._digest.hexdigest()

    def close(self) -> None:
        self.stream.close()
        self._raw.close()

    def _begins_a_value(self) -> bool:
        return _peek(self.path, self.stream).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")

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
        """Read at most a chunk and check what the file has unpacked to so far."""
        try:
            content = read()
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidRequest(f"{self.path} cannot be read: {error}") from error
        self._bytes_read += len(content)
        if self._bytes_read > MAX_FILE_BYTES:
            raise TooLarge(f"{self.path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB")
        if self._bytes_read > RATIO_FREE_BYTES and self._bytes_read > MAX_RATIO * max(self._raw.tell(), 1):
            raise TooLarge(f"{self.path} unpacks to more than {MAX_RATIO} times its size")
        self._digest.update(content)
        return content


def open_question_file(path: Path) -> FileContent:
    """Open a file by its bytes.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: it is no regular file, or of a kind that is not read here.
    """
    raw = _open_regular(path)
    try:
        stream = _unpacked(raw)
        first = _peek(path, stream)
        for mark, sentence in _FOREIGN.items():
            if first.startswith(mark):
                raise InvalidRequest(f"{path} {sentence}")
        kind: Kind = "parquet" if first.startswith(_PARQUET) else "text"
        if kind == "parquet" and stream is not raw:
            raise InvalidRequest(f"{path} is a packed parquet file; unpack it (parquet compresses by itself)")
    except BaseException:
        raw.close()
        raise
    return FileContent(path, stream, kind, raw)


def _open_regular(path: Path) -> io.BufferedReader:
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would never return.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no question file {path}") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(f"there is no question file {path}: it is no regular file")
    return os.fdopen(descriptor, "rb")


def _unpacked(raw: io.BufferedReader) -> BinaryIO:
    """The stream without gzip, which may have several members."""
    if raw.peek(2)[:2] != _GZIP:
        return raw
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw))))


def _peek(path: Path, stream: BinaryIO, size: int = _FIRST_BYTES) -> bytes:
    try:
        return cast(io.BufferedReader, stream).peek(size)[:size]
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
