"""Opens an index generation for searching."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from searchrl.errors import ConfigurationError
from services.retriever.corpora.passage_store import PassageStore
from services.retriever.encoders.encoder_description import EncoderDescription
from services.retriever.indexes.approximate.search_effort import DEFAULT_EFFORT, SearchEffort
from services.retriever.indexes.bm25_index import Bm25Index
from services.retriever.indexes.dense_index import DenseRanker, ExactIndex, QueryEncoder, VectorIndex
from services.retriever.indexes.manifest import (
    BM25_FOLDER,
    PASSAGES_FOLDER,
    VECTORS_FOLDER,
    DamagedIndex,
    Manifest,
    Verification,
    read_manifest,
    verify_files,
)
from services.retriever.indexes.ranked_rows import Ranker
from services.retriever.ranking.rank_fusion import HybridRanker, ReciprocalRankFusion

OpenEncoder = Callable[[EncoderDescription], QueryEncoder]


@dataclass(frozen=True)
class Generation:
    """An opened index generation. A running search holds a reference, so a swap never unmaps what it reads."""

    manifest: Manifest
    passages: PassageStore
    rankers: Mapping[str, Ranker]
    effort: SearchEffort = DEFAULT_EFFORT

    @property
    def id(self) -> str:
        return self.manifest.generation

    @property
    def model_key(self) -> str:
        """Names the encoder and the search effort: what a ranking depends on besides the generation's files."""
        encoder = self.manifest.encoder
        if encoder is None:
            return ""
        return f"{encoder.sha256} {self.effort}" if self.manifest.vectors == "faiss" else encoder.sha256

    @property
    def default_mode(self) -> str:
        """The mode of searches that name none."""
        return self.manifest.kind


def open_generation(
    folder: Path,
    open_encoder: OpenEncoder,
    verification: Verification = "auto",
    effort: SearchEffort = DEFAULT_EFFORT,
) -> Generation:
    """Check and map a generation. ``effort`` takes precedence over the one recorded at build time.

    Raises:
        DamagedIndex: a part is missing, unreadable or does not fit the others.
        ConfigurationError: it needs another encoder or another version of this program.
    """
    manifest = read_manifest(folder)
    effort = effort.or_else(manifest.effort)
    verify_files(folder, manifest, verification)
    with _reading():
        passages = PassageStore(folder / PASSAGES_FOLDER)
    _check_count(folder, "passages", len(passages), manifest.passages)
    rankers: dict[str, Ranker] = {}
    if manifest.kind != "dense":
        bm25 = Bm25Index.open(folder / BM25_FOLDER)
        _check_count(folder, "BM25 index", bm25.passages, manifest.passages)
        rankers["bm25"] = bm25
    if manifest.kind != "bm25":
        rankers["dense"] = _open_dense(folder, manifest, passages, open_encoder, effort)
    if manifest.kind == "hybrid":
        rankers["hybrid"] = HybridRanker([rankers["bm25"], rankers["dense"]], ReciprocalRankFusion())
    return Generation(manifest, passages, rankers, effort)


def _open_dense(
    folder: Path, manifest: Manifest, passages: PassageStore, open_encoder: OpenEncoder, effort: SearchEffort
) -> DenseRanker:
    if manifest.encoder is None:
        raise DamagedIndex(f"{folder} has vectors but names no encoder; rebuild the index")
    with _reading():
        index = _open_vectors(folder / VECTORS_FOLDER, manifest, manifest.encoder.dimensions, effort)
    _check_count(folder, "vector index", len(index), manifest.passages)
    if index.dimensions != manifest.encoder.dimensions:
        raise DamagedIndex(
            f"{folder}: vectors have {index.dimensions} dimensions, the encoder has {manifest.encoder.dimensions}"
        )
    return DenseRanker(open_encoder(manifest.encoder), index, passages)


def _open_vectors(folder: Path, manifest: Manifest, dimensions: int, effort: SearchEffort) -> VectorIndex:
    if manifest.vectors != "faiss":
        return ExactIndex.open(folder, dimensions)
    # Imported here, because FAISS takes 60 MB of memory that other indexes do not need.
    from services.retriever.indexes.approximate.faiss_index import INDEX_FILE, FaissIndex

    return FaissIndex.open(folder / INDEX_FILE, effort)


@contextmanager
def _reading() -> Iterator[None]:
    """Report unreadable files as damage: they were readable when the generation was built."""
    try:
        yield
    except ConfigurationError as error:
        raise DamagedIndex(str(error)) from error


def _check_count(folder: Path, part: str, found: int, expected: int) -> None:
    if found != expected:
        raise DamagedIndex(f"{folder}: the {part} holds {found} rows, expected {expected}; rebuild the index")
