"""Fetches models, corpora and indexes from a Hugging Face hub."""

from collections.abc import Iterator, Mapping
from urllib.parse import quote

import httpx

from searchrl.errors import ConfigurationError
from searchrl.storage.source import RemoteFile, check, stream, translate_connection_errors

# Files of a model repository that are not fetched: weights in other formats, and documentation.
# Many repositories hold the same weights in several formats, and only safetensors are loaded here.
_LEFT_OUT = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite", ".md", ".png", ".jpg")
_LEFT_OUT_FOLDERS = frozenset({"onnx", "openvino", "coreml", "gguf", "original", "runs"})
_MODEL_FILES = frozenset({"config.json", "modules.json"})  # a repository with one of these is a model
# Of the hub itself; left out of data sets and indexes.
_HUB_FILES = frozenset({".gitattributes", ".gitignore", "README.md"})


class HubSource:
    """A repository: ``hf://ORG/NAME``, ``hf://ORG/NAME@REVISION``, or ``hf://datasets/ORG/NAME``.

    Of a model only safetensors weights are fetched, never formats that can run code when loaded (pickle), with the
    sub-folders that sentence-transformers reads. Of any other repository every file is fetched.
    """

    def __init__(self, uri: str, client: httpx.Client, environment: Mapping[str, str]) -> None:
        name, _, revision = uri.removeprefix("hf://").strip("/").partition("@")
        first, _, rest = name.partition("/")
        self._kind = "models"
        if first in ("datasets", "models") and rest.count("/") == 1:
            self._kind, name = first, rest
        if name.count("/") != 1:
            raise ConfigurationError(f"{uri}: write hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://datasets/ORG/NAME")
        self._uri, self._name, self._revision = uri, name, revision or "main"
        self._endpoint = environment.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = environment.get("HF_TOKEN")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = client

    def files(self) -> list[RemoteFile]:
        url: str | None = (
            f"{self._endpoint}/api/{self._kind}/{self._name}/tree/{quote(self._revision, safe='')}?recursive=true"
        )
        rows: list[dict[str, object]] = []
        while url is not None:
            with translate_connection_errors(self._uri):
                # Redirects lead from a renamed repository to its new name; httpx does not send the token to another
                # host.
                response = self._client.get(url, headers=self._headers, follow_redirects=True)
            check(response, self._uri)
            rows += response.json()
            # The hub lists a repository in pages, and names the next one in the Link header (RFC 8288).
            url = response.links.get("next", {}).get("url")
        found = [_remote_file(row) for row in rows if row.get("type") == "file"]
        if self._kind == "datasets" or not any(file.name in _MODEL_FILES for file in found):
            return [file for file in found if file.name not in _HUB_FILES]
        wanted = [file for file in found if _is_wanted(file.name)]
        if not any(file.name.endswith(".safetensors") for file in wanted):
            raise ConfigurationError(f"{self._uri} has no weights as safetensors; convert it first")
        return wanted

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        repository = f"datasets/{self._name}" if self._kind == "datasets" else self._name
        url = f"{self._endpoint}/{repository}/resolve/{quote(self._revision, safe='')}/{quote(file.name)}"
        return stream(self._client, url, self._headers, f"{self._uri}: {file.name}")


def _remote_file(row: Mapping[str, object]) -> RemoteFile:
    # The object id of Git LFS is the SHA-256 of the content; that of an ordinary file is a Git hash, which also covers
    # a header, and is not used.
    large = row.get("lfs")
    sha256 = str(large.get("oid", "")) if isinstance(large, dict) else ""
    size = row.get("size")
    return RemoteFile(str(row["path"]), size if isinstance(size, int) else None, sha256)


def _is_wanted(name: str) -> bool:
    """Whether a file of a model repository is needed to load the model here."""
    *folders, last = name.split("/")
    is_hidden = any(part.startswith(".") for part in (*folders, last))
    return not is_hidden and not _LEFT_OUT_FOLDERS.intersection(folders) and not last.endswith(_LEFT_OUT)
