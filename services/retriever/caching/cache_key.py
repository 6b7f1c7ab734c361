"""Keys of cached rankings: everything that can change a ranking, and nothing else."""

import hashlib
import unicodedata
from typing import NamedTuple

import orjson

from searchrl.platform.json_text import without_lone_surrogates


class RankingScope(NamedTuple):
    """All that a ranking depends on besides the query: index, model and parameters."""

    generation: str
    model: str
    mode: str
    top_k: int
    filters: tuple[tuple[str, str], ...]


def normalize_query(query: str) -> str:
    """Composed characters, single spaces, none at the ends. This form is ranked, too.

    A lone surrogate, which JSON can spell and no text can contain, becomes a replacement character.
    """
    return " ".join(unicodedata.normalize("NFC", without_lone_surrogates(query)).split())


def cache_key(scope: RankingScope, normalized_query: str) -> str:
    """A short key, equal exactly for equal scope and query."""
    digest = hashlib.blake2b(orjson.dumps([*scope, normalized_query]), digest_size=20)
    return f"searchrl:ranking:1:{digest.hexdigest()}"
