"""Encodes the passages of a corpus on demand, block by block, for the storages of vectors."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from searchrl.errors import ConfigurationError
from services.retriever.corpora.passage_store import PassageStore
from services.retriever.encoders.base import Encoder

Progress = Callable[[str, int, int], None]
"""Receives the phase of a build, how much of it is done, and the total."""
# Sixteen batches of the encoder, which sorts the texts of one call by length and so pads less; also the rows between
# two reports of progress.
_ENCODE_ROWS = 1_024
# Recall over 100 queries of ten rows is known to about 0.03. A question has about a dozen words; the limit in
# characters is for text without spaces.
_RECALL_QUERIES = 100
_QUERY_WORDS, _QUERY_CHARACTERS = 12, 120


class PassageVectors:
    """The vectors of a corpus, encoded on demand, so that they never are in memory all at once."""

    def __init__(self, passages: PassageStore, encoder: Encoder, progress: Progress) -> None:
        self._passages = passages
        self._encoder = encoder
        self._progress = progress

    @property
    def dimensions(self) -> int:
        """Of the encoder's vectors."""
        return self._encoder.description.dimensions

    def __len__(self) -> int:
        return len(self._passages)

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
        """Vectors of all rows in order, or of ``rows``, in blocks.

        Raises:
            ConfigurationError: the encoder gives a passage a vector with infinite or undefined numbers.
        """
        total = len(self) if rows is None else len(rows)
        for start in range(0, total, _ENCODE_ROWS):
            end = min(start + _ENCODE_ROWS, total)
            numbers = range(start, end) if rows is None else rows[start:end].tolist()
            block_BD = self._encoder.encode_passages([self._passages.row(number).contents for number in numbers])
            is_usable_B = np.isfinite(block_BD).all(axis=1)
            if not is_usable_B.all():
                bad = self._passages.passage(numbers[int(np.flatnonzero(~is_usable_B)[0])])
                raise ConfigurationError(
                    f"the encoder gives passage '{bad.id}' a vector with infinite or undefined numbers; "
                    "try another device or data type, or check the model's files"
                )
            # Progress is reported when the caller asks for the next block, so once it has stored this one.
            yield block_BD
            self._progress("encode" if rows is None else "sample", end, total)

    def sample_queries(self) -> NDArray[np.float32]:
        """Vectors of synthetic queries: the first words of passages from all parts of the corpus."""
        rows = range(0, len(self), max(1, len(self) // _RECALL_QUERIES))[:_RECALL_QUERIES]
        texts = (" ".join(self._passages.passage(row).text.split()[:_QUERY_WORDS])[:_QUERY_CHARACTERS] for row in rows)
        return self._encoder.encode_queries([text for text in texts if text])
