"""Yields the rows of a parquet file, reading only the columns that a row shape uses."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from searchrl.datasets.file_content import MAX_FILE_BYTES, FileContent
from searchrl.datasets.json_records import Record
from searchrl.datasets.row import Row, canonical_key
from searchrl.datasets.shapes.registry import READ_KEYS
from searchrl.errors import ConfigurationError, InvalidRequest, TooLarge

if TYPE_CHECKING:
    from pyarrow import parquet

BATCH_ROWS = 256
"""Rows that are Python objects at once. More rows take more memory (rows with documents are large), fewer rows take
more calls."""


def parquet_records(content: FileContent) -> Iterator[Record]:
    """Read the rows in batches.

    Raises:
        InvalidRequest: the file is damaged, or a value in it cannot be read.
        TooLarge: its columns unpack to more than ``MAX_FILE_BYTES``.
        ConfigurationError: pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{content.path} is a parquet file, which needs pyarrow: pip install pyarrow"
        ) from error
    number = 0
    try:
        file = parquet.ParquetFile(content.stream)
        _check_size(content, file)
        columns = [name for name in file.schema_arrow.names if canonical_key(name) in READ_KEYS]
        if not columns:
            raise InvalidRequest(
                f"{content.path} has no column with questions, found the columns {', '.join(file.schema_arrow.names)}"
            )
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for values in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield Record(f"row {number}", Row(values))
    except (ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise InvalidRequest(f"{content.path}, after row {number}: not a readable parquet file: {error}") from error


def _check_size(content: FileContent, file: "parquet.ParquetFile") -> None:
    metadata = file.metadata
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"{content.path} unpacks to more than {MAX_FILE_BYTES >> 30} GiB")
