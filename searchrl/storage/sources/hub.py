"""Fetches models, data sets and indexes from a Hugging Face hub through ``huggingface_hub``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from searchrl.errors import ConfigurationError, ServiceError, Unavailable
from searchrl.storage.durable_files import is_disk_full
from searchrl.storage.sources.base import SILENCE_SECONDS, RemoteFile, Source

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

# Files of a model repository that are not fetched: weights in other formats, and documentation.
# Many repositories hold the same weights in several formats, and only safetensors are loaded here.
_LEFT_OUT = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite", ".md", ".png", ".jpg")
_LEFT_OUT_FOLDERS = frozenset({"onnx", "openvino", "coreml", "gguf", "original", "runs"})
_MODEL_FILES = frozenset({"config.json", "modules.json"})  # a repository with one of these is a model
# Of the hub itself; left out of data sets and indexes.
_HUB_FILES = frozenset({".gitattributes", ".gitignore", "README.md"})

# Revisions of the hub's own, such as refs/pr/1, have slashes; in a branch's name %2F stands for one.
_URI = re.compile(
    r"hf://(?:(?P<kind>datasets|models)/(?=[^/]+/))?(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.+?))?/?"
)


class HubSource(Source):
    """A repository, or a folder or file of one; ``hf://datasets/ORG/NAME`` is one of data, another one a model.

    Of a model only safetensors weights are fetched, never formats that can run code when loaded (pickle), with the
    sub-folders that sentence-transformers reads. Of any other repository every file is fetched. A branch is resolved to
    its commit first, so that all files are those of one commit.

    Environment variables: ``HF_TOKEN``, ``HF_ENDPOINT`` and the others of ``huggingface_hub``.
    """

    schemes = ("hf",)
    form = "hf://[datasets/]ORG/NAME[@REVISION][/PATH]"
    credentials = "HF_TOKEN, or the token that `hf auth login` stored"

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        match = _URI.fullmatch(uri)
        if match is None:
            raise self.malformed()
        self._type = "dataset" if match["kind"] == "datasets" else "model"
        self._name = match["name"]
        self._branch = unquote(match["revision"]) if match["revision"] else None
        self._path = match["path"] or ""
        self._endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

    @cached_property
    def _api(self) -> HfApi:
        try:
            from huggingface_hub import HfApi, constants
        except ImportError as error:
            raise ConfigurationError(f"{self.uri}: {error}; install searchrl[storage]") from error
        # The images set HF_HUB_OFFLINE, so that no service asks the hub on its own; a fetch is a request to do so.
        constants.HF_HUB_OFFLINE = False
        return HfApi(self._endpoint)

    def files(self) -> list[RemoteFile]:
        api = self._api
        with self._translate(self.uri):
            info = api.repo_info(self._name, revision=self._branch, repo_type=self._type, timeout=SILENCE_SECONDS)
            self.revision = info.sha or self._branch or "main"
            rows = self._rows(api)
        if self._path and any(row.path == self._path for row in rows):
            self._path = self._path.rpartition("/")[0]
            return [self._remote_file(row) for row in rows]
        found = [self._remote_file(row) for row in rows]
        if self._type == "dataset" or not any(file.name in _MODEL_FILES for file in found):
            return [file for file in found if file.name not in _HUB_FILES]
        wanted = [file for file in found if _is_wanted(file.name)]
        if not any(file.name.endswith(".safetensors") for file in wanted):
            raise ConfigurationError(f"{self.uri} has no weights as safetensors; convert it first")
        return wanted

    def _rows(self, api: HfApi) -> list[RepoFile]:
        from huggingface_hub import RepoFile

        if self._path:
            named = api.get_paths_info(self._name, self._path, revision=self.revision, repo_type=self._type)
            if not named:
                raise ConfigurationError(f"{self.uri}: {self._name} has no {self._path}")
            if isinstance(named[0], RepoFile):
                return [named[0]]
        tree = api.list_repo_tree(
            self._name, self._path or None, recursive=True, revision=self.revision, repo_type=self._type
        )
        return [row for row in tree if isinstance(row, RepoFile)]

    def _remote_file(self, row: RepoFile) -> RemoteFile:
        name = row.path.removeprefix(f"{self._path}/") if self._path else row.path
        # The object id of Git LFS is the SHA-256 of the content; that of an ordinary file is a Git hash, which also
        # covers a header, and is not used.
        return RemoteFile(name, row.size, row.lfs.sha256 if row.lfs else "")

    def download(self, file: RemoteFile, path: Path) -> None:
        from huggingface_hub import hf_hub_download

        # A folder for each file, which stays after a failure: the next attempt continues the download in it.
        folder = path.with_name(f"{path.name}.hub")
        with self._translate(f"{self.uri}: {file.name}"):
            arrived = hf_hub_download(
                self._name,
                f"{self._path}/{file.name}" if self._path else file.name,
                repo_type=self._type,
                revision=self.revision,
                local_dir=folder,
                endpoint=self._endpoint,
                etag_timeout=SILENCE_SECONDS,
            )
        Path(arrived).replace(path)
        shutil.rmtree(folder)

    @contextmanager
    def _translate(self, what: str) -> Iterator[None]:
        """Translate the errors of ``huggingface_hub``; those of the local disk pass unchanged."""
        import httpx2
        from huggingface_hub import errors

        try:
            yield
        except (ServiceError, ConfigurationError):
            raise
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx2.HTTPError) as error:
            # LocalEntryNotFoundError: neither on the hub nor in the local cache; its cause is the hub's answer.
            cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
            raise self._meaning(cause or error, what) from error
        except errors.HFValidationError as error:
            raise self.malformed() from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._foreign_answer(what) from error
        except (OSError, RuntimeError, errors.XetDownloadError) as error:
            if is_disk_full(error) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise Unavailable(f"{what}: {str(error).partition(chr(10))[0]}", None) from error

    def _meaning(self, error: BaseException, what: str) -> ServiceError | ConfigurationError:
        from huggingface_hub import errors

        page = f"{self._endpoint}/{'datasets/' if self._type == 'dataset' else ''}{self._name}"
        if isinstance(error, errors.GatedRepoError):
            return ConfigurationError(
                f"{what}: access is restricted: accept the conditions at {page}, and set HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ConfigurationError(f"{what}: {self._name} has no revision {self._branch or self.revision}")
        if isinstance(error, errors.RepositoryNotFoundError):
            # The hub also answers 401 for what does not exist, so that nobody learns the names of private ones.
            status = error.response.status_code
            return ConfigurationError(f"{what}: not found, or private: credentials: {self.credentials} (HTTP {status})")
        if isinstance(error, errors.HfHubHTTPError):
            return self.refusal(error.response.status_code, what)
        if isinstance(error, errors.FileMetadataError):
            return self._foreign_answer(what)
        return Unavailable(f"{what}: {type(error).__name__} {error}", None)

    def _foreign_answer(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{what}: {self._endpoint} does not answer as a hub does; check HF_ENDPOINT")


def _is_wanted(name: str) -> bool:
    """Whether a file of a model repository is needed to load the model here."""
    *folders, last = name.split("/")
    is_hidden = any(part.startswith(".") for part in (*folders, last))
    return not is_hidden and not _LEFT_OUT_FOLDERS.intersection(folders) and not last.endswith(_LEFT_OUT)
