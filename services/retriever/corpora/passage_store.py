"""Finds passages by row number, id or metadata: rows on disk with their offsets, mapped into memory.

    rows.jsonl     {"id":"a",...}\\n{"id":"b",...}\\n    the usable lines of the corpus, stripped
    offsets.npy    0 15 30                            N + 1 uint64; row n and its newline end at offsets[n + 1]
    ids.npy        2 x N uint64                       hashes of the ids, ascending, and the row of each
    metadata.npy   2 x M uint64                       the same for each (key, value) of each row

The files of a generation never change once it is complete. They must not: if a mapped file is cut short, reading the
missing part ends the process (SIGBUS).
"""

import mmap
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from searchrl.domain.passage import Passage, normalize_passage_id
from searchrl.errors import ConfigurationError, Unavailable
from services.retriever.corpora.corpus_reader import SourceRow
from services.retriever.corpora.corpus_row import CorpusRow, RowError, filter_term, parse_row

ROWS_FILE, OFFSETS_FILE, IDS_FILE, METADATA_FILE = "rows.jsonl", "offsets.npy", "ids.npy", "metadata.npy"


class PassageStoreWriter:
    """Writes a store row by row; a context manager that writes the lookup tables at its end, unless an error occurs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._file = (folder / ROWS_FILE).open("wb")
        # Eight bytes per row; a list of Python integers would take 40, and a corpus may have 21 million rows.
        self._offsets = bytearray((0).to_bytes(8, "little"))
        self._ids = RowLookupWriter()
        self._metadata = RowLookupWriter()
        self._count = 0

    def add(self, source: SourceRow) -> int:
        """Append a row and return its number."""
        row = self._count
        self._file.write(source.line)
        self._file.write(b"\n")
        self._offsets += self._file.tell().to_bytes(8, "little")
        passage = source.row.passage
        self._ids.add((passage.id,), row)
        self._metadata.add((filter_term(key, value) for key, value in passage.metadata.items()), row)
        self._count += 1
        return row

    def __enter__(self) -> "PassageStoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            with (self._folder / OFFSETS_FILE).open("wb") as file:
                np.save(file, np.frombuffer(self._offsets, dtype="<u8"))
            self._ids.write(self._folder / IDS_FILE)
            self._metadata.write(self._folder / METADATA_FILE)


class PassageStore:
    """Reads a store from any thread. All files are mapped, so that processes share their pages."""

    def __init__(self, folder: Path) -> None:
        try:
            self._offsets: NDArray[np.uint64] = np.load(folder / OFFSETS_FILE, mmap_mode="r")
            self._ids = RowLookup(folder / IDS_FILE)
            self._metadata = RowLookup(folder / METADATA_FILE)
            with (folder / ROWS_FILE).open("rb") as file:
                self._rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{folder} holds no readable passages ({error}); rebuild the index") from error
        if len(self._rows) != int(self._offsets[-1]):
            raise ConfigurationError(f"{folder / ROWS_FILE} is truncated or changed; rebuild the index")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def row(self, number: int) -> CorpusRow:
        """The row with this number.

        Raises:
            IndexError: there is no such row; negative numbers do not count from the end.
            Unavailable: the bytes on disk are no longer a valid row.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        try:
            return parse_row(self._rows[int(self._offsets[number]) : int(self._offsets[number + 1]) - 1])
        except RowError as error:  # it was valid when the index was built
            raise Unavailable(f"row {number} of the index in service is damaged ({error}); rebuild it") from error

    def passage(self, number: int) -> Passage:
        """The passage of a row."""
        return self.row(number).passage

    def find(self, id: str) -> Passage | None:
        """The passage with this id."""
        id = normalize_passage_id(id)
        for number in self._ids.rows(id).tolist():  # ids of equal hash, of which one may be the wanted one
            passage = self.passage(number)
            if passage.id == id:
                return passage
        return None

    def rows_with(self, filters: Mapping[str, str]) -> NDArray[np.int64] | None:
        """Rows that have all of ``filters``, ascending; None if there is no filter."""
        chosen: NDArray[np.int64] | None = None
        for key, value in filters.items():
            rows = self._metadata.rows(filter_term(key, value))
            chosen = rows if chosen is None else np.intersect1d(chosen, rows, assume_unique=True)
        return chosen


class RowLookupWriter:
    """Collects (key, row) pairs, 16 bytes each, and writes them sorted."""

    def __init__(self) -> None:
        self._hashes = bytearray()
        self._rows = bytearray()

    def add(self, keys: Iterable[str], row: int) -> None:
        """Note that ``row`` has ``keys``."""
        number = row.to_bytes(8, "little")
        for key in keys:
            self._hashes += _digest(key)
            self._rows += number

    def write(self, path: Path) -> None:
        """Write pairs sorted by hash, then row."""
        pairs = np.empty(len(self._rows) // 8, dtype=[("hash", "<u8"), ("row", "<i8")])
        pairs["hash"] = np.frombuffer(self._hashes, dtype="<u8")
        pairs["row"] = np.frombuffer(self._rows, dtype="<i8")
        # lexsort sorts by its last key first: by hash, then by row.
        order = np.lexsort((pairs["row"], pairs["hash"]))
        table = np.empty((2, len(pairs)), dtype="<u8")
        table[0] = pairs["hash"][order]
        table[1] = pairs["row"][order].astype("<u8")
        with path.open("wb") as file:
            np.save(file, table)


class RowLookup:
    """Rows by key. Two keys share a hash with a chance of n^2 / 2^65: below one in a million for 5 million keys."""

    def __init__(self, path: Path) -> None:
        self._hashes, self._rows = np.load(path, mmap_mode="r")

    def rows(self, key: str) -> NDArray[np.int64]:
        """Rows whose key hashes like ``key``, ascending."""
        wanted = np.uint64(int.from_bytes(_digest(key), "little"))
        start = np.searchsorted(self._hashes, wanted, side="left")
        end = np.searchsorted(self._hashes, wanted, side="right")
        return np.asarray(self._rows[start:end]).astype(np.int64)


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
