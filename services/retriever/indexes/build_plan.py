"""Describes an index to build: its corpus, its kind and its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.retriever.encoders.sentence_encoder import EncoderOptions
from services.retriever.indexes.analyzer import Language
from services.retriever.indexes.approximate.search_effort import DEFAULT_EFFORT, SearchEffort
from services.retriever.indexes.manifest import Kind


@dataclass(frozen=True)
class BuildPlan:
    """What to build.

    Attributes:
        faiss_type: a FAISS factory string; None keeps plain vectors for exact search.
        import_faiss: an index file of another builder to use instead of encoding the passages.
        effort: how thoroughly to search the FAISS index; the retriever's settings may override it later.
    """

    corpus: tuple[Path, ...]
    kind: Kind
    language: Language | Literal["auto"] = "auto"
    encoder: Path | None = None
    encoder_options: EncoderOptions = field(default_factory=EncoderOptions)
    faiss_type: str | None = None
    import_faiss: Path | None = None
    effort: SearchEffort = DEFAULT_EFFORT
    skip_bad_rows: bool = False
