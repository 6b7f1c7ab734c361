"""Encodes texts with models in sentence-transformers folders, adding the prefixes that their family expects."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from searchrl.errors import ConfigurationError
from searchrl.input_files import check_no_lfs_pointers
from searchrl.storage.artifact_manifest import read_origin
from services.retriever.encoders.base import Encoder, EncoderDescription, EncoderOptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Keys of a model's own prompts, the task-specific ones of jina-embeddings first.
_QUERY_PROMPTS = ("retrieval.query", "query")
_PASSAGE_PROMPTS = ("retrieval.passage", "passage", "document")
# What transformers, torch and the JSON files of a damaged folder are known to raise; a torch without CUDA asserts.
_LOADING_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, AssertionError,
)  # fmt: skip

# Configuration, weights and vocabulary (``.model``: sentencepiece). Not the README and the like: editing them changes
# no vector.
_FINGERPRINT_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")


class Prefixes(NamedTuple):
    """Texts put before every query and before every passage."""

    query: str
    passage: str


_NONE = Prefixes("", "")
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_INSTRUCT = Prefixes(f"Instruct: {_WEB_SEARCH}\nQuery: ", "")
_REPRESENT = Prefixes("Represent this sentence for searching relevant passages: ", "")
_SIZE = "(?:xs|s|small|m|medium|base|l|large)"

# From the models' own cards. The first pattern found in the model's name decides, so special cases come first.
_FAMILIES: tuple[tuple[str, Prefixes], ...] = (
    (r"e5-.*instruct", _INSTRUCT),
    (r"e5-omni", _NONE),
    (rf"e5(?:-{_SIZE})?(?:-v2|-unsupervised)?", Prefixes("query: ", "passage: ")),
    (r"bge-m3", _NONE),
    (r"bge-multilingual-gemma2", Prefixes(f"<instruct>{_WEB_SEARCH}.\n<query>", "")),
    (r"bge-en-icl", Prefixes(f"<instruct>{_WEB_SEARCH}.\n<query>", "")),
    (rf"bge-{_SIZE}-zh(?:-v1\.5)?", Prefixes("为这个句子生成表示以用于检索相关文章：", "")),
    (rf"bge-{_SIZE}(?:-en)?(?:-v1\.5)?", _REPRESENT),
    (r"gte-qwen\d*(?:\.\d)?-.*instruct", _INSTRUCT),
    (rf"gte-(?:multilingual-|modernbert-)?{_SIZE}(?:-zh|-en)?(?:-v1\.5)?", _NONE),
    (r"qwen3-embedding", Prefixes(f"Instruct: {_WEB_SEARCH}\nQuery:", "")),
    (r"(?:mxbai-embed|mxbai)-large(?:-v1)?", _REPRESENT),
    (rf"snowflake-arctic-embed-{_SIZE}(?:-long)?-v2\.0", Prefixes("query: ", "")),
    (rf"snowflake-arctic-embed-{_SIZE}(?:-long|-v1\.5)?", _REPRESENT),
    (r"nomic-embed-text(?:-v1(?:\.5)?|-v2-moe)?", Prefixes("search_query: ", "search_document: ")),
    (r"(?:all|multi-qa|paraphrase|msmarco|distiluse|gtr|sentence-t5|contriever|dpr|labse)(?:-.*)?", _NONE),
    (r"minilm.*", _NONE),
)
# A family is found only between separators or at the ends of the name (in lower case), so that ``e5`` is not found
# inside of another word.
_PATTERNS = tuple(
    (re.compile(rf"(?:^|[-_/. ])(?:multilingual-)?{pattern}(?:$|[-_/. ])"), prefixes) for pattern, prefixes in _FAMILIES
)


class SentenceEncoder(Encoder):
    """Encodes with a sentence-transformers folder; pooling is the folder's own. Called by one thread at a time."""

    def __init__(self, folder: Path, options: EncoderOptions = EncoderOptions()) -> None:
        check_no_lfs_pointers(folder)
        _check_modules(folder)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigurationError(
                "dense indexes need the package sentence-transformers: pip install 'searchrl[encoders]'"
            ) from error
        self._model: SentenceTransformer = _load(SentenceTransformer, folder, options.device)
        if options.max_tokens:
            self._model.max_seq_length = options.max_tokens
        self._normalize = options.normalize
        self.description = _describe(self._model, folder, options)

    @staticmethod
    def is_model_folder(folder: Path) -> bool:
        """Whether ``folder`` holds a model of sentence-transformers, or a plain transformer."""
        return (folder / "modules.json").is_file() or (folder / "config.json").is_file()

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [Q, D] of queries."""
        return self._encode(texts, self.description.query_prefix)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, D] of passages."""
        return self._encode(texts, self.description.passage_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> NDArray[np.float32]:
        encoded = self._model.encode(
            [prefix + text for text in texts],
            batch_size=64,  # a larger one needs more memory for activations
            normalize_embeddings=self._normalize,
            show_progress_bar=False,
            convert_to_numpy=True,
            prompt="",  # the prefix is in the text already; a default prompt of the folder would come before it
        )
        return np.asarray(encoded, dtype=np.float32)


def find_prefixes(name: str) -> Prefixes | None:
    """The prefixes of the family that a model's name belongs to; None for a name of no known family."""
    for pattern, prefixes in _PATTERNS:
        if pattern.search(name.lower()):
            return prefixes
    return None


def choose_prefixes(name: str, prompts: Mapping[str, str | None], options: EncoderOptions) -> Prefixes:
    """The user's prefixes, else those in the model's own configuration, else those of its family.

    A model of no known family gets none and a warning, because a model without its prefixes finds less.
    """
    query = next((text for key in _QUERY_PROMPTS if (text := prompts.get(key))), None)
    passage = next((text for key in _PASSAGE_PROMPTS if (text := prompts.get(key))), None)
    if query is None and passage is None:
        family = find_prefixes(name)
        if family is None and options.query_prefix is None and options.passage_prefix is None:
            logger.warning(
                "'%s' belongs to no known family of encoders, so queries and passages get no prefix; "
                "if it needs one, pass --query-prefix and --passage-prefix",
                name,
            )
        query, passage = family or ("", "")
    return Prefixes(
        (query or "") if options.query_prefix is None else options.query_prefix,
        (passage or "") if options.passage_prefix is None else options.passage_prefix,
    )


def _load(model_class: "type[SentenceTransformer]", folder: Path, device: str) -> "SentenceTransformer":
    """Load the model; the error says in one sentence why it cannot be loaded."""
    from safetensors import SafetensorError

    try:
        # Local files only: a wrong folder fails here, instead of being looked up as a name on the model hub.
        return model_class(str(folder), device=device, local_files_only=True)
    except (*_LOADING_ERRORS, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"cannot load the encoder in {folder} on '{device}': {reason}") from error


def _check_modules(folder: Path) -> None:
    """Check that the pooling named by modules.json exists; copies often lack the files below the top folder."""
    try:
        modules = orjson.loads((folder / "modules.json").read_bytes())
        paths = [str(module["path"]) for module in modules if module["path"]]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{folder / 'modules.json'} cannot be read ({error})") from error
    for path in paths:
        if "pooling" in path.lower() and not (folder / path / "config.json").is_file():
            raise ConfigurationError(f"{folder} lacks {path}/config.json, which modules.json names; fetch it again")


def _describe(model: "SentenceTransformer", folder: Path, options: EncoderOptions) -> EncoderDescription:
    name = _published_name(folder)
    prefixes = choose_prefixes(name, dict(model.prompts), options)
    return EncoderDescription(
        folder=str(folder.resolve()),
        name=name,
        dimensions=int(model.get_embedding_dimension() or 0),
        pooling=_pooling(folder),
        query_prefix=prefixes.query,
        passage_prefix=prefixes.passage,
        is_normalized=options.normalize,
        max_tokens=int(model.max_seq_length or 0),
        sha256=_fingerprint(folder),
    )


def _published_name(folder: Path) -> str:
    """The model's name: from the address it was fetched from, else from its folder.

    A snapshot in the hub's cache lies in ``models--owner--name/snapshots/hash``.
    """
    folder = folder.absolute()
    if (origin := read_origin(folder)) is not None:
        return origin.partition("@")[0].rstrip("/").rpartition("/")[2]
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _pooling(folder: Path) -> str:
    try:
        config = orjson.loads((folder / "1_Pooling" / "config.json").read_bytes())
    except (OSError, ValueError):
        return "mean"  # what sentence-transformers adds to a plain transformer
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named
    chosen = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    return "+".join(chosen) or "mean"


def _fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of the configuration, vocabulary and weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _FINGERPRINT_SUFFIXES and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
