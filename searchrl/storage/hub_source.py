"""How is a model fetched from a Hugging Face hub?"""

from collections.abc import Iterator, Mapping
from urllib.parse import quote

import httpx

from searchrl.errors import ConfigurationError
from searchrl.storage.source import RemoteFile, check, reaching, stream

# Other frameworks' weights, and what is no part of the model.
_LEFT_OUT = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite", ".md", ".png", ".jpg")


class HubSource:
    """``hf://ORG/NAME`` or ``hf://ORG/NAME@REVISION``; only safetensors, never files that run code when loaded."""

    def __init__(self, uri: str, client: httpx.Client, environment: Mapping[str, str]) -> None:
        name, _, revision = uri.removeprefix("hf://").strip("/").partition("@")
        if name.count("/") != 1:
            raise ConfigurationError(f"{uri}: write hf://ORG/NAME or hf://ORG/NAME@REVISION")
        self._uri, self._name, self._revision = uri, name, revision or "main"
        self._endpoint = environment.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = environment.get("HF_TOKEN")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = client

    def files(self) -> list[RemoteFile]:
        url: str | None = (
            f"{self._endpoint}/api/models/{self._name}/tree/{quote(self._revision, safe='')}?recursive=true"
        )
        rows: list[dict[str, object]] = []
        while url is not None:
            with reaching(self._uri):
                response = self._client.get(url, headers=self._headers, follow_redirects=True)
            check(response, self._uri)
            rows += response.json()
            url = response.links.get("next", {}).get("url")
        found = [_remote_file(row) for row in rows if row.get("type") == "file"]
        wanted = [file for file in found if _is_wanted(file.name)]
        if not any(file.name.endswith(".safetensors") for file in wanted):
            raise ConfigurationError(f"{self._uri} has no weights as safetensors; convert it first")
        return wanted

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        url = f"{self._endpoint}/{self._name}/resolve/{quote(self._revision, safe='')}/{quote(file.name)}"
        return stream(self._client, url, self._headers, f"{self._uri}: {file.name}")


def _remote_file(row: Mapping[str, object]) -> RemoteFile:
    large = row.get("lfs")
    sha256 = str(large.get("oid", "")) if isinstance(large, dict) else ""
    size = row.get("size")
    return RemoteFile(str(row["path"]), size if isinstance(size, int) else None, sha256)


def _is_wanted(name: str) -> bool:
    return "/" not in name and not name.startswith(".") and not name.endswith(_LEFT_OUT)
