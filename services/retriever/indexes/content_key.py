"""Finds an existing index of the same corpus and settings, so that it need not be built again."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from searchrl.errors import ConfigurationError
from services.retriever.indexes.analyzer import ANALYZER_VERSION
from services.retriever.indexes.build_plan import BuildPlan
from services.retriever.indexes.index_store import IndexStore
from services.retriever.indexes.manifest import Manifest, verify_files

logger = logging.getLogger(__name__)


def content_key(plan: BuildPlan, corpus_sha256: str) -> str:
    """A hash of everything that the content of a generation depends on; the encoder is identified by its files."""
    parts = {
        "corpus": corpus_sha256,
        "kind": plan.kind,
        "language": plan.language,
        "analyzer": None if plan.kind == "dense" else ANALYZER_VERSION,
        "encoder": _folder_digest(plan.encoder) if plan.encoder else None,
        "encoder_options": plan.encoder_options._replace(device="")._asdict(),  # devices differ in rounding only
        "faiss_type": plan.faiss_type,
        "effort": asdict(plan.effort),
        "import_faiss": _file_digest(plan.import_faiss) if plan.import_faiss else None,
        "skip_bad_rows": plan.skip_bad_rows,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def existing_generation(store: IndexStore, plan: BuildPlan) -> Manifest | None:
    """The newest intact generation of the same corpus and settings, if there is one.

    Raises:
        ConfigurationError: the corpus or the encoder cannot be read.
    """
    known = [manifest for manifest in store.list() if manifest.content_key]
    if not known:
        return None
    key = content_key(plan, corpus_digest(plan.corpus))
    for manifest in reversed(known):
        if manifest.content_key != key:
            continue
        try:
            verify_files(store.generation_folder(manifest.generation), manifest, "full")
        except ConfigurationError as error:
            logger.warning("not reused: %s", error)
            continue
        return manifest
    return None


def corpus_digest(files: Sequence[Path]) -> str:
    """The value of ``CorpusReader.sha256`` after reading all of the files."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise ConfigurationError(f"cannot read the corpus {path}: {error}") from error
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def _folder_digest(folder: Path) -> str:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{name}={_file_digest(folder / name)}\n" for name in names).encode()).hexdigest()
