"""The manifest of an index generation: build plan, origin, parameters and the checksum of every file."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from searchrl.storage.durable_files import FileRecord, content_key, file_record, fsync_path, sha256_file
from services.retriever.encoders.base import EncoderDescription, EncoderOptions
from services.retriever.indexes.analyzer import ANALYZER_VERSION, Language
from services.retriever.indexes.vectors.base import DEFAULT_EFFORT, RecallRecord, SearchEffort, VectorPlan

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1  # increases when older programs could not read a generation; other versions are refused
PASSAGES_FOLDER = "passages"

Verification = Literal["auto", "full", "sizes"]
_AUTO_FULL_BYTES = 1 << 30  # about half a second of hashing and a few of reading
_BLOCK_BYTES = 8 << 20  # at 50 MB/s a read of this size every 0.17 s; larger blocks would disturb searches in bursts


class DamagedIndex(ConfigurationError):
    """Files of a generation are missing or have changed since it was built; another generation may be intact."""


@dataclass(frozen=True)
class BuildPlan:
    """What to build; ``kind`` is one of ``INDEX_KINDS``."""

    corpus: tuple[Path, ...]
    kind: str
    language: Language | Literal["auto"] = "auto"
    encoder: Path | None = None
    encoder_options: EncoderOptions = field(default_factory=EncoderOptions)
    vectors: VectorPlan = field(default_factory=VectorPlan)
    skip_bad_rows: bool = False


class CorpusRecord(Section):
    """Where the passages came from; the checksum covers the files' bytes, in order."""

    files: tuple[str, ...]
    sha256: str
    skipped_rows: int


class Manifest(Section):
    """Everything needed to load a generation and to distinguish it from another one.

    Attributes:
        kind: one of ``INDEX_KINDS``.
        vectors: one of ``VECTOR_STORAGES``; None: there are no vectors.
        effort, recall: how thoroughly to search a FAISS index, and the recall of that at build time.
        content_key: a hash of corpus and build plan: generations of equal keys rank alike.
    """

    format_version: int = FORMAT_VERSION
    generation: str
    kind: str
    passages: int
    created: str
    corpus: CorpusRecord
    language: Language | None = None
    vectors: str | None = None
    faiss_type: str | None = None
    encoder: EncoderDescription | None = None
    effort: SearchEffort = DEFAULT_EFFORT
    recall: RecallRecord | None = None
    content_key: str = ""
    files: dict[str, FileRecord] = Field(default={})


def read_manifest(folder: Path) -> Manifest:
    """Read a generation's manifest.

    Raises:
        DamagedIndex: missing or damaged.
        ConfigurationError: it has another format version.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DamagedIndex(f"{folder} is not a complete index: cannot read {MANIFEST_FILE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedIndex(f"{path} is damaged ({place}: {first['msg']}); rebuild the index") from error
    if manifest.format_version != FORMAT_VERSION:
        raise ConfigurationError(f"{path} has format {manifest.format_version}, this program reads {FORMAT_VERSION}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Checksum every file under ``folder``, write the manifest, and force everything to disk.

    The manifest is written after the files it describes, so that a folder with a manifest is complete.
    """
    files = {
        path.relative_to(folder).as_posix(): file_record(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    complete = manifest.model_copy(update={"files": files})
    path = folder / MANIFEST_FILE
    path.write_text(complete.model_dump_json(indent=2))
    for written in (*folder.rglob("*"), folder):
        written.chmod(0o755 if written.is_dir() else 0o644)  # tantivy writes files that only their owner can read
        fsync_path(written)
    return complete


def verify_files(folder: Path, manifest: Manifest, verification: Verification) -> None:
    """Compare the files with the manifest.

    ``full`` reads all files, ``auto`` only if they take at most 1 GiB in total; ``sizes`` compares sizes. Contents that
    are not read here are read later, by ``check_slowly``.

    Raises:
        DamagedIndex: a file is missing, cut off or changed.
    """
    reads_all = not is_checked_later(manifest, verification)
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedIndex(f"the index file {path} is missing; rebuild the index or activate another")
        # The size first: it costs no reading.
        if path.stat().st_size != record.bytes or (reads_all and sha256_file(path) != record.sha256):
            raise DamagedIndex(f"the index file {path} is damaged; rebuild the index or activate another")


def is_checked_later(manifest: Manifest, verification: Verification) -> bool:
    """Whether the contents of these files are left to ``check_slowly``."""
    is_large = sum(record.bytes for record in manifest.files.values()) > _AUTO_FULL_BYTES
    return verification == "sizes" or (verification == "auto" and is_large)


async def check_slowly(folder: Path, manifest: Manifest, bytes_per_second: float) -> None:
    """Read every file and compare its checksum, at a limited rate that leaves disk bandwidth to searches.

    Reading and hashing run in a worker thread, block by block; the pauses are in the event loop. The time of reading
    adds to the pauses, so the rate is never exceeded.

    Raises:
        DamagedIndex: a file is cut off or changed.
        OSError: a file is missing or cannot be read.
    """
    for name, record in manifest.files.items():
        digest = hashlib.sha256()
        path = folder / name
        with path.open("rb") as file:
            while block := await asyncio.to_thread(file.read, _BLOCK_BYTES):
                await asyncio.to_thread(digest.update, block)
                await asyncio.sleep(len(block) / bytes_per_second)
        if digest.hexdigest() != record.sha256:
            raise DamagedIndex(f"the index file {path} is damaged; rebuild the index or activate another")


def build_key(plan: BuildPlan, corpus_sha256: str) -> str:
    """Hash everything that the content of a generation depends on; the encoder is identified by its files."""
    # An option that is missing here would make --if-missing reuse an index that was built with another value of it.
    parts = {
        "corpus": corpus_sha256,
        "kind": plan.kind,
        "language": plan.language,
        "analyzer": None if plan.kind == "dense" else ANALYZER_VERSION,
        "encoder": _folder_digest(plan.encoder) if plan.encoder else None,
        "encoder_options": plan.encoder_options._replace(device="")._asdict(),  # devices differ in rounding only
        "faiss_type": plan.vectors.faiss_type,
        "effort": plan.vectors.effort.model_dump(),
        "import_faiss": _file_digest(plan.vectors.import_faiss) if plan.vectors.import_faiss else None,
        "skip_bad_rows": plan.skip_bad_rows,
    }
    return content_key(parts)


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
        return sha256_file(path)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def _folder_digest(folder: Path) -> str:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{name}={_file_digest(folder / name)}\n" for name in names).encode()).hexdigest()
