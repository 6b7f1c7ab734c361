"""How is a file, or a folder with a manifest, fetched from a web server?"""

import json
from collections.abc import Iterator
from urllib.parse import quote

import httpx

from searchrl.errors import ConfigurationError
from searchrl.platform.artifact_manifest import FORMAT, MANIFEST_FILE
from searchrl.storage.source import RemoteFile, check, reaching, stream


class WebSource:
    """``https://host/folder/`` with a ``manifest.json`` that names its files, or ``https://host/file.jsonl``.

    A last part with a dot is a file, unless the address ends with a slash.
    """

    def __init__(self, uri: str, client: httpx.Client) -> None:
        self._uri = uri
        self._client = client
        last = uri.rpartition("/")[2]
        self._file = last if "." in last else ""
        self._folder = uri.rpartition("/")[0] if self._file else uri.rstrip("/")

    def files(self) -> list[RemoteFile]:
        if self._file:
            return [RemoteFile(self._file)]
        what = f"{self._folder}/{MANIFEST_FILE}"
        with reaching(what):
            response = self._client.get(what, follow_redirects=True)
        check(response, what)
        try:
            manifest = json.loads(response.content)
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
            named = [RemoteFile(name, row["bytes"], row["sha256"]) for name, row in manifest["files"].items()]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{what} is not a manifest of files ({error})") from error
        return [*named, RemoteFile(MANIFEST_FILE)]

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        url = f"{self._folder}/{quote(file.name)}"
        return stream(self._client, url, {}, url)
