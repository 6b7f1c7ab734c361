"""How does a corpus become an index generation?"""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from searchrl.errors import ConfigurationError
from services.retriever.corpora.corpus_reader import CorpusReader
from services.retriever.corpora.passage_store import PassageStore, PassageStoreWriter
from services.retriever.encoders.sentence_encoder import SentenceEncoder
from services.retriever.indexes.analyzer import Language, detect_language
from services.retriever.indexes.bm25_index import Bm25Index, IndexableRow
from services.retriever.indexes.build_plan import BuildPlan
from services.retriever.indexes.content_key import content_key
from services.retriever.indexes.dense_index import ExactIndex, Vectors
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import (
    BM25_FOLDER,
    PASSAGES_FOLDER,
    VECTORS_FOLDER,
    CorpusRecord,
    Manifest,
)

Progress = Callable[[str, int, int], None]
_ENCODE_ROWS = 1_024
_READ_ROWS_PER_PROGRESS = 5_000
_LANGUAGE_SAMPLE = 1_000


def build_generation(
    store: IndexStore, plan: BuildPlan, progress: Progress, reader: CorpusReader | None = None
) -> Manifest:
    """Build a complete generation; it is not activated.

    ``progress`` is told the phase, how much is done and the total.

    Raises:
        ConfigurationError: the corpus, the encoder or the plan is unusable.
        Conflict: another build is running in this store.
    """
    encoder = _open_encoder(plan)
    reader = reader or CorpusReader(plan.corpus, skip_bad_rows=plan.skip_bad_rows)
    with store.building() as folder:
        passages = _store_passages(reader, folder / PASSAGES_FOLDER, progress)
        language = _build_bm25(plan, passages, folder / BM25_FOLDER, progress) if plan.kind != "dense" else None
        if encoder is not None:
            _build_vectors(plan, passages, encoder, folder / VECTORS_FOLDER, progress)
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
            content_key=content_key(plan, reader.sha256),
        )
        progress("finish", 0, 1)
        complete = store.complete(folder, manifest)
        progress("finish", 1, 1)
        return complete


def _open_encoder(plan: BuildPlan) -> SentenceEncoder | None:
    if plan.kind == "bm25":
        if plan.encoder or plan.faiss_type or plan.import_faiss:
            raise ConfigurationError("a bm25 index has no vectors: leave out encoder and FAISS, or choose another kind")
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
        # From all over the corpus: files are often sorted by language or source.
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


def _build_vectors(
    plan: BuildPlan, passages: PassageStore, encoder: SentenceEncoder, folder: Path, progress: Progress
) -> None:
    if plan.import_faiss is not None:
        _import_faiss(plan.import_faiss, passages, encoder, folder)
    elif plan.faiss_type is not None:
        from services.retriever.indexes.faiss_index import FaissIndex

        FaissIndex.build(folder, _encoded(passages, encoder, progress), factory=plan.faiss_type)
    else:
        ExactIndex.build(folder, _encoded(passages, encoder, progress))


def _encoded(passages: PassageStore, encoder: SentenceEncoder, progress: Progress) -> Iterator[Vectors]:
    total = len(passages)
    texts = (passages.row(number).contents for number in range(total))
    done = 0
    while block := list(islice(texts, _ENCODE_ROWS)):
        yield encoder.encode_passages(block)
        done += len(block)
        progress("encode", done, total)


def _import_faiss(file: Path, passages: PassageStore, encoder: SentenceEncoder, folder: Path) -> None:
    from services.retriever.indexes.faiss_index import INDEX_FILE, FaissIndex

    index = FaissIndex.open(file)
    if len(index) != len(passages):
        raise ConfigurationError(f"{file} holds {len(index)} vectors, the corpus has {len(passages)} passages")
    if index.dimensions != encoder.description.dimensions:
        raise ConfigurationError(
            f"{file} has {index.dimensions} dimensions, the encoder has {encoder.description.dimensions}"
        )
    folder.mkdir(parents=True)
    shutil.copyfile(file, folder / INDEX_FILE)
