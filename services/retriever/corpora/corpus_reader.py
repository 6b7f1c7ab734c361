"""Reads the rows of corpus files and lists the unusable lines."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from searchrl.errors import ConfigurationError
from searchrl.input_files import check_no_lfs_pointers
from services.retriever.corpora.corpus_row import CorpusRow, RowError, parse_row

SHOWN_BAD_ROWS = 10  # enough to recognize a systematic mistake, and few enough for one error message


class BadRow(NamedTuple):
    """A line that gives no passage."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class SourceRow(NamedTuple):
    """A row with the line it was read from."""

    row: CorpusRow
    line: bytes


class CorpusReader:
    """Reads ``.jsonl`` and ``.jsonl.gz`` files one after the other. Blank lines are allowed; every other line counts.

    ``bad_rows`` holds the first bad lines and ``bad_count`` counts them all; ``sha256`` is that of the files' bytes,
    known once iteration has ended. Ids must be unique over all files.
    """

    def __init__(self, files: Sequence[Path], *, skip_bad_rows: bool = False) -> None:
        self._files = files
        self._skip = skip_bad_rows
        self._digest = hashlib.sha256()
        self.bad_rows: list[BadRow] = []
        self.bad_count = 0
        self.bytes_read = 0

    @property
    def sha256(self) -> str:
        """Checksum of the bytes read so far, as they lie on disk."""
        return self._digest.hexdigest()

    @property
    def total_bytes(self) -> int:
        """Size of the files on disk, for progress."""
        return sum(file.stat().st_size for file in self._files)

    def __iter__(self) -> Iterator[SourceRow]:
        """Yield usable rows in order.

        Raises:
            ConfigurationError: a file cannot be read, holds no row, or has bad rows that are not to be skipped. The
                message lists the first ten bad rows, at which reading stops.
        """
        # In memory, because ids must be unique over all files: about 90 bytes each if they are short, so 1.9 GB for the
        # 21 million passages of Wikipedia.
        ids: set[str] = set()
        for file in self._files:
            check_no_lfs_pointers(file)
            for number, line in self._lines(file):
                try:
                    row = parse_row(line)
                    if row.passage.id in ids:
                        raise RowError(f"duplicate id '{row.passage.id}'")
                except RowError as error:
                    self._report(BadRow(str(file), number, str(error)))
                    continue
                ids.add(row.passage.id)
                # After a bad row the build cannot succeed; the rest is read only to list more of them.
                if self._skip or not self.bad_count:
                    yield SourceRow(row, line)
        self._check(len(ids))

    def _lines(self, file: Path) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            with file.open("rb") as raw, _decompress(_HashedFile(raw, self)) as lines:
                for number, line in enumerate(lines, start=1):
                    if stripped := line.strip():
                        yield number, stripped
        # gzip raises EOFError for a file that is cut off, and zlib.error for one with changed bytes.
        except (OSError, EOFError, zlib.error) as error:
            place = f"{file} after line {number}" if number else str(file)
            raise ConfigurationError(f"cannot read the corpus {place}: {error}") from error

    def note_bytes(self, chunk: bytes) -> None:
        """Count and hash a chunk as it is read from disk."""
        self.bytes_read += len(chunk)
        self._digest.update(chunk)

    def _report(self, bad: BadRow) -> None:
        self.bad_count += 1
        if len(self.bad_rows) < SHOWN_BAD_ROWS:
            self.bad_rows.append(bad)
        if not self._skip and self.bad_count >= SHOWN_BAD_ROWS:
            self._check(1)

    def _check(self, rows: int) -> None:
        if self.bad_count and not self._skip:
            listed = "\n  ".join(map(str, self.bad_rows))
            more = ", perhaps more" if self.bad_count >= SHOWN_BAD_ROWS else ""
            raise ConfigurationError(
                f"the corpus has {self.bad_count} unusable rows{more}; repair them, "
                f"or pass --skip-bad-rows to skip them:\n  {listed}"
            )
        if not rows:
            names = ", ".join(map(str, self._files))
            raise ConfigurationError(f"the corpus {names} has no usable row")


class _HashedFile(io.RawIOBase):
    """A binary file that passes every chunk to ``CorpusReader.note_bytes``, before it is decompressed."""

    def __init__(self, raw: BinaryIO, reader: CorpusReader) -> None:
        self._raw = raw
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        chunk = self._raw.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._reader.note_bytes(chunk)
        return len(chunk)


def _decompress(hashed: _HashedFile) -> io.BufferedIOBase:
    buffered = io.BufferedReader(hashed, buffer_size=1 << 20)
    is_gzip = buffered.peek(2)[:2] == b"\x1f\x8b"  # gzip's magic number decides, not the file's name
    # No buffer around the GzipFile: an error would discard what it holds, and with it the number of the last good line.
    return gzip.GzipFile(fileobj=buffered) if is_gzip else buffered
