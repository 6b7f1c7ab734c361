"""Builds an index generation from a corpus: passages, then BM25, then vectors, then the manifest."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from searchrl.errors import ConfigurationError
from searchrl.git_lfs import check_no_lfs_pointers
from services.retriever.corpora.corpus_reader import CorpusReader
from services.retriever.corpora.passage_store import PassageStore, PassageStoreWriter
from services.retriever.encoders.sentence_encoder import SentenceEncoder
from services.retriever.indexes.analyzer import Language, detect_language
from services.retriever.indexes.bm25_index import Bm25Index, IndexableRow
from services.retriever.indexes.build_plan import BuildPlan
from services.retriever.indexes.content_key import content_key
from services.retriever.indexes.dense_index import ExactIndex, Rows, Vectors
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import (
    BM25_FOLDER,
    PASSAGES_FOLDER,
    VECTORS_FOLDER,
    CorpusRecord,
    Manifest,
    RecallRecord,
)

Progress = Callable[[str, int, int], None]
# Sixteen batches of the encoder, which sorts the texts of one call by length and so pads less; also the rows between
# two reports of progress.
_ENCODE_ROWS = 1_024
_READ_ROWS_PER_PROGRESS = 5_000  # reading is much faster than encoding, so it reports less often
# A corpus of which one passage in a hundred is CJK has about ten in the sample.
_LANGUAGE_SAMPLE = 1_000
# Recall over 100 queries of ten rows is known to about 0.03. A question has about a dozen words; the limit in
# characters is for text without spaces.
_RECALL_QUERIES = 100
_QUERY_WORDS, _QUERY_CHARACTERS = 12, 120


def build_generation(
    store: IndexStore, plan: BuildPlan, progress: Progress, reader: CorpusReader | None = None
) -> Manifest:
    """Build a complete generation; it is not activated.

    ``progress`` receives the phase, how much is done and the total.

    Raises:
        ConfigurationError: the corpus, the encoder or the plan is unusable.
        Conflict: another build is running in this store.
    """
    encoder = _open_encoder(plan)
    reader = reader or CorpusReader(plan.corpus, skip_bad_rows=plan.skip_bad_rows)
    files = ", ".join(file.name for file in plan.corpus)
    with store.start_build(f"{plan.kind} index of {files}") as folder:
        passages = _store_passages(reader, folder / PASSAGES_FOLDER, progress)
        language = _build_bm25(plan, passages, folder / BM25_FOLDER, progress) if plan.kind != "dense" else None
        recall = None
        if encoder is not None:
            recall = _build_vectors(plan, passages, encoder, folder / VECTORS_FOLDER, progress)
        is_faiss = bool(plan.faiss_type or plan.import_faiss)
        manifest = Manifest(
            generation=store.new_generation_id(plan.kind, reader.sha256),
            kind=plan.kind,
            passages=len(passages),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            corpus=CorpusRecord(
                files=tuple(file.name for file in plan.corpus), sha256=reader.sha256, skipped_rows=reader.bad_count
            ),
            language=language,
            vectors=None if encoder is None else "faiss" if is_faiss else "exact",
            faiss_type=plan.faiss_type,
            encoder=encoder.description if encoder else None,
            effort=plan.effort,
            recall=recall,
            content_key=content_key(plan, reader.sha256),
        )
        progress("finish", 0, 1)
        complete = store.complete(folder, manifest)
        progress("finish", 1, 1)
        return complete


def _open_encoder(plan: BuildPlan) -> SentenceEncoder | None:
    if plan.kind == "bm25":
        if plan.encoder or plan.faiss_type or plan.import_faiss:
            raise ConfigurationError(
                "a bm25 index has no vectors: omit encoder and FAISS options, or choose another kind"
            )
        return None
    if plan.encoder is None:
        raise ConfigurationError(f"a {plan.kind} index needs an encoder: pass the folder of a model with --encoder")
    return SentenceEncoder(plan.encoder, plan.encoder_options)


def _store_passages(reader: CorpusReader, folder: Path, progress: Progress) -> PassageStore:
    total = reader.total_bytes
    with PassageStoreWriter(folder) as writer:
        for number, source in enumerate(reader):
            writer.add(source)
            if number % _READ_ROWS_PER_PROGRESS == 0:
                progress("read", reader.bytes_read, total)
    progress("read", total, total)
    return PassageStore(folder)


def _build_bm25(plan: BuildPlan, passages: PassageStore, folder: Path, progress: Progress) -> Language:
    rows = (passages.row(number) for number in range(len(passages)))
    language = plan.language
    if language == "auto":
        # From all parts of the corpus: files are often sorted by language or source.
        sample = range(0, len(passages), max(1, len(passages) // _LANGUAGE_SAMPLE))
        language = detect_language(passages.row(number).contents for number in sample)
    total = len(passages)
    Bm25Index.build(
        folder,
        (IndexableRow(row.contents, row.passage.metadata) for row in rows),
        language=language,
        progress=lambda done: progress("bm25", done, total),
    )
    progress("bm25", total, total)
    return language


class PassageVectors:
    """The vectors of a corpus, encoded on demand, so that they never are in memory all at once."""

    def __init__(self, passages: PassageStore, encoder: SentenceEncoder, progress: Progress) -> None:
        self._passages = passages
        self._encoder = encoder
        self._progress = progress

    def __len__(self) -> int:
        return len(self._passages)

    def blocks(self, rows: Rows | None = None) -> Iterator[Vectors]:
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
            yield block_BD
            self._progress("encode" if rows is None else "sample", end, total)

    def sample_queries(self) -> Vectors:
        """Vectors of synthetic queries: the first words of passages from all parts of the corpus."""
        rows = range(0, len(self), max(1, len(self) // _RECALL_QUERIES))[:_RECALL_QUERIES]
        texts = (" ".join(self._passages.passage(row).text.split()[:_QUERY_WORDS])[:_QUERY_CHARACTERS] for row in rows)
        return self._encoder.encode_queries([text for text in texts if text])


def _build_vectors(
    plan: BuildPlan, passages: PassageStore, encoder: SentenceEncoder, folder: Path, progress: Progress
) -> RecallRecord | None:
    """Write the vectors; return the recall of an approximate index, if it could be measured."""
    vectors = PassageVectors(passages, encoder, progress)
    if plan.import_faiss is not None:
        _import_faiss(plan.import_faiss, vectors, encoder, folder)
        return None
    if plan.faiss_type is None:
        ExactIndex.build(folder, vectors.blocks())
        return None
    from services.retriever.indexes.approximate.faiss_builder import build_faiss

    return build_faiss(
        folder, vectors, factory=plan.faiss_type, effort=plan.effort, recall_queries_QD=vectors.sample_queries()
    ).recall


def _import_faiss(file: Path, vectors: PassageVectors, encoder: SentenceEncoder, folder: Path) -> None:
    """Copy a FAISS file of another builder, after checking that it belongs to this corpus and encoder."""
    from services.retriever.indexes.approximate.faiss_import import check_imported
    from services.retriever.indexes.approximate.faiss_index import INDEX_FILE, FaissIndex

    check_no_lfs_pointers(file)
    index = FaissIndex.open(file)
    if len(index) != len(vectors):
        raise ConfigurationError(f"{file} holds {len(index)} vectors, the corpus has {len(vectors)} passages")
    if index.dimensions != encoder.description.dimensions:
        raise ConfigurationError(
            f"{file} has {index.dimensions} dimensions, the encoder has {encoder.description.dimensions}"
        )
    check_imported(file, index, len(vectors), lambda rows: np.concatenate(list(vectors.blocks(rows))))
    folder.mkdir(parents=True)
    # A copy, not a hard link: its builder may write the file again, and would then change a generation in service.
    shutil.copyfile(file, folder / INDEX_FILE)
