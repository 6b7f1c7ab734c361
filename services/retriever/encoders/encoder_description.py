"""How were an index's vectors made?"""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderDescription:
    """Kept in the index's manifest, so that queries are encoded as the passages were.

    ``sha256`` is that of the model's configuration and weights: another model with the same name is noticed.
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
