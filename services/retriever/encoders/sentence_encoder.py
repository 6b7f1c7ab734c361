"""What vector does a text have? Models in sentence-transformers folders, with the prefixes their family expects."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from searchrl.errors import ConfigurationError
from services.retriever.encoders.encoder_description import EncoderDescription

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BGE_QUERY = "Represent this sentence for searching relevant passages: "


class EncoderOptions(NamedTuple):
    """What the user may choose; None leaves it to the model's folder or family."""

    query_prefix: str | None = None
    passage_prefix: str | None = None
    normalize: bool = True
    max_tokens: int | None = None
    device: str = "cpu"


class SentenceEncoder:
    """Encodes with a sentence-transformers folder; pooling is the folder's own. Called by one thread at a time."""

    def __init__(self, folder: Path, options: EncoderOptions = EncoderOptions()) -> None:
        if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder} is no model folder: it has neither modules.json nor config.json")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigurationError(
                "dense indexes need the package sentence-transformers: pip install 'searchrl[encoders]'"
            ) from error
        self._model: SentenceTransformer = SentenceTransformer(
            str(folder), device=options.device, local_files_only=True
        )
        if options.max_tokens:
            self._model.max_seq_length = options.max_tokens
        self._normalize = options.normalize
        self.description = _describe(self._model, folder, options)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [Q, D] of queries."""
        return self._encode(texts, self.description.query_prefix)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, D] of passages."""
        return self._encode(texts, self.description.passage_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> NDArray[np.float32]:
        encoded = self._model.encode(
            [prefix + text for text in texts],
            batch_size=64,
            normalize_embeddings=self._normalize,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(encoded, dtype=np.float32)


def open_described(description: EncoderDescription, folder: Path | None, device: str) -> SentenceEncoder:
    """Open the encoder an index was built with, from ``folder`` where the model has moved.

    Raises:
        ConfigurationError: the folder is missing or holds another model.
    """
    chosen = folder or Path(description.folder)
    if not chosen.is_dir():
        raise ConfigurationError(
            f"the index needs the encoder '{description.name}', which is not at {chosen}; set encoder.folder to it"
        )
    options = EncoderOptions(
        description.query_prefix, description.passage_prefix, description.is_normalized, description.max_tokens, device
    )
    encoder = SentenceEncoder(chosen, options)
    if encoder.description.sha256 != description.sha256:
        raise ConfigurationError(
            f"the model at {chosen} is not the one the index was built with; set encoder.folder, or build again"
        )
    return encoder


def prefixes_of(name: str) -> tuple[str, str]:
    """Query and passage prefix that a model family was trained with, told by the model's name."""
    lowered = name.lower()
    if "e5" in lowered:
        return "query: ", "passage: "
    if "bge" in lowered and "m3" not in lowered:
        return _BGE_QUERY, ""
    return "", ""


def _describe(model: "SentenceTransformer", folder: Path, options: EncoderOptions) -> EncoderDescription:
    name = _published_name(folder)
    query_prefix, passage_prefix = prefixes_of(name)
    prompts = dict(model.prompts)
    query_prefix = prompts.get("query") or query_prefix
    passage_prefix = prompts.get("passage") or prompts.get("document") or passage_prefix
    return EncoderDescription(
        folder=str(folder.resolve()),
        name=name,
        dimensions=int(model.get_embedding_dimension() or 0),
        pooling=_pooling(folder),
        query_prefix=query_prefix if options.query_prefix is None else options.query_prefix,
        passage_prefix=passage_prefix if options.passage_prefix is None else options.passage_prefix,
        is_normalized=options.normalize,
        max_tokens=int(model.max_seq_length or 0),
        sha256=_fingerprint(folder),
    )


def _published_name(folder: Path) -> str:
    """The folder's name; for a snapshot of the hub's cache (``models--owner--name/snapshots/hash``) the model's."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _pooling(folder: Path) -> str:
    try:
        config = orjson.loads((folder / "1_Pooling" / "config.json").read_bytes())
    except (OSError, ValueError):
        return "mean"
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named
    chosen = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    return "+".join(chosen) or "mean"


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt") and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
