"""Describes how the vectors of an index were made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderDescription:
    """Stored in the index's manifest, so that queries are encoded like the passages.

    ``sha256`` covers the model's configuration and weights, which detects another model of the same name.
    """

    folder: str
    name: str
    dimensions: int
    pooling: str
    query_prefix: str
    passage_prefix: str
    is_normalized: bool
    max_tokens: int
    sha256: str
