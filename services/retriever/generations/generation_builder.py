"""Builds an index generation from a corpus: passages, then the parts of its kind, then the manifest."""

from datetime import UTC, datetime
from pathlib import Path

from searchrl.errors import ConfigurationError
from services.retriever.corpora.corpus_reader import CorpusReader
from services.retriever.corpora.passage_store import PassageStore, PassageStoreWriter
from services.retriever.encoders.base import Encoder
from services.retriever.encoders.open_encoder import open_encoder
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes import INDEX_KINDS
from services.retriever.indexes.base import BuildInputs
from services.retriever.indexes.manifest import PASSAGES_FOLDER, BuildPlan, CorpusRecord, Manifest, build_key
from services.retriever.indexes.vectors.passage_vectors import Progress

_READ_ROWS_PER_PROGRESS = 5_000  # reading is much faster than encoding, so it reports less often


def build_generation(
    store: IndexStore, plan: BuildPlan, progress: Progress, reader: CorpusReader | None = None
) -> Manifest:
    """Build a complete generation; it is not activated.

    Raises:
        ConfigurationError: the corpus, the encoder or the plan is unusable.
        Conflict: another build is running in this store.
    """
    # Before the corpus is read, which may take minutes: a model that cannot be used is reported at once.
    encoder = _open_encoder(plan)
    reader = reader or CorpusReader(plan.corpus, skip_bad_rows=plan.skip_bad_rows)
    files = ", ".join(file.name for file in plan.corpus)
    with store.start_build(f"{plan.kind} index of {files}") as folder:
        # First, because the checksum of the corpus is known only when it has been read.
        passages = _store_passages(reader, folder / PASSAGES_FOLDER, progress)
        parts = INDEX_KINDS[plan.kind].build(BuildInputs(plan, passages, encoder, folder, progress))
        manifest = Manifest(
            generation=store.new_generation_id(plan.kind, reader.sha256),
            kind=plan.kind,
            passages=len(passages),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            corpus=CorpusRecord(
                files=tuple(file.name for file in plan.corpus), sha256=reader.sha256, skipped_rows=reader.bad_count
            ),
            language=parts.language,
            vectors=parts.vectors,
            faiss_type=plan.vectors.faiss_type,
            encoder=encoder.description if encoder else None,
            effort=plan.vectors.effort,
            recall=parts.recall,
            content_key=build_key(plan, reader.sha256),
        )
        progress("finish", 0, 1)
        complete = store.complete(folder, manifest)
        progress("finish", 1, 1)
        return complete


def _open_encoder(plan: BuildPlan) -> Encoder | None:
    if not INDEX_KINDS[plan.kind].has_vectors:
        if plan.encoder or plan.vectors.storage != "exact":
            raise ConfigurationError(
                f"a {plan.kind} index has no vectors: omit encoder and FAISS options, or choose another kind"
            )
        return None
    if plan.encoder is None:
        raise ConfigurationError(f"a {plan.kind} index needs an encoder: pass the folder of a model with --encoder")
    return open_encoder(plan.encoder, plan.encoder_options)


def _store_passages(reader: CorpusReader, folder: Path, progress: Progress) -> PassageStore:
    total = reader.total_bytes
    with PassageStoreWriter(folder) as writer:
        for number, source in enumerate(reader):
            writer.add(source)
            if number % _READ_ROWS_PER_PROGRESS == 0:
                progress("read", reader.bytes_read, total)
    progress("read", total, total)
    return PassageStore(folder)
