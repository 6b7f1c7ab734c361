"""Reads the rows of data files, each with its file and place."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from searchrl.datasets.file_content import FileContent, open_question_file
from searchrl.datasets.json_records import json_records
from searchrl.datasets.row import Row
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.storage.artifact_manifest import verify_input
from services.trainer.runs.trajectory_files import TOKENIZER_KEY

BATCH_ROWS = 256
"""Rows of a parquet file that are Python objects at once: more take more memory, fewer more calls."""


class PlacedRow(NamedTuple):
    """A row, and where it stands: "chats.jsonl, line 3"."""

    place: str
    row: Row


def read_rows(files: Sequence[Path], tokenizer: str) -> Iterator[PlacedRow]:
    """Yield the rows of all files in their order.

    Args:
        tokenizer: SHA-256 of the model's tokenizer, which must be that of a file of trajectories.

    Raises:
        ConfigurationError: a file is missing, differs from its manifest, holds tokens of another tokenizer, or cannot
            be read; names file and place.
    """
    for path in files:
        if not path.is_file():
            raise ConfigurationError(f"there is no data file {path}")
        verify_input(path)
        try:
            content = open_question_file(path)
            try:
                yield from _rows_of(content, tokenizer)
            finally:
                content.close()
        except ServiceError as error:
            raise ConfigurationError(str(error)) from error


def _rows_of(content: FileContent, tokenizer: str) -> Iterator[PlacedRow]:
    if content.kind == "parquet":
        yield from _parquet_rows(content, tokenizer)
        return
    for place, row in json_records(content):
        yield PlacedRow(f"{content.path}, {place}", row)


def _parquet_rows(content: FileContent, tokenizer: str) -> Iterator[PlacedRow]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        file = parquet.ParquetFile(content.stream)
        written_with = (file.schema_arrow.metadata or {}).get(TOKENIZER_KEY)
        if written_with is not None and written_with.decode() != tokenizer:
            raise ConfigurationError(
                f"{content.path} holds tokens of another tokenizer than the model's; start from a model of the same "
                "family, or export the trajectories with --form messages"
            )
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for values in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield PlacedRow(f"{content.path}, row {number}", Row(_without_nulls(values)))
    except (ArrowException, OSError) as error:
        raise ConfigurationError(f"{content.path}, after row {number}: not a readable parquet file: {error}") from error


def _without_nulls(value: Any) -> Any:
    """Leave out the null fields of objects: parquet gives every object the fields of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
