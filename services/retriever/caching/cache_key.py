"""Keys of cached rankings: everything that can change a ranking, and nothing else."""

import hashlib
import unicodedata
from typing import NamedTuple

import orjson

from searchrl.platform.json_text import without_lone_surrogates


class RankingScope(NamedTuple):
    """Everything that a ranking depends on besides the query: index, model and parameters."""

    generation: str
    model: str
    mode: str
    top_k: int
    filters: tuple[tuple[str, str], ...]


def normalize_query(query: str) -> str:
    """Return ``query`` in NFC with single spaces and none at the ends; the ranker receives this form, too.

    A lone surrogate, which JSON can encode but UTF-8 cannot, becomes a replacement character.
    """
    return " ".join(unicodedata.normalize("NFC", without_lone_surrogates(query)).split())


def cache_key(scope: RankingScope, normalized_query: str) -> str:
    """A short key, equal exactly for equal scope and query."""
    # 160 bits: two of a billion rankings share a key with a chance below 1e-30. The number in the prefix is the format
    # of the key and of what Redis holds under it.
    digest = hashlib.blake2b(orjson.dumps([*scope, normalized_query]), digest_size=20)
    return f"searchrl:ranking:1:{digest.hexdigest()}"
