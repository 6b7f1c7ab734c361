"""Finds the rows that have a key: a sorted array of 64-bit hashes on disk, mapped and searched by bisection."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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
