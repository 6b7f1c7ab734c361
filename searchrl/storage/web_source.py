"""Fetches a file, or a folder with a manifest, from a web server."""

import json
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

import httpx

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import FORMAT, MANIFEST_FILE
from searchrl.storage.source import TEMPORARY, RemoteFile, check, stream, translate_connection_errors


class WebSource:
    """A folder ``https://host/folder/`` whose ``manifest.json`` names its files, or a file ``https://host/file.jsonl``.

    An address whose last part has a dot is a file, unless it ends with a slash. Without a dot it is a folder if it has
    a manifest, else a file (``part_aa`` of a split archive).
    """

    def __init__(self, uri: str, client: httpx.Client) -> None:
        self._uri = uri
        self._client = client
        path = urlsplit(uri).path
        self._name = unquote(path.rpartition("/")[2])
        self._is_file = "." in self._name

    def files(self) -> list[RemoteFile]:
        if self._is_file:
            return [RemoteFile(self._name)]
        what = f"{self._uri.rstrip('/')}/{MANIFEST_FILE}"
        with translate_connection_errors(what):
            response = self._client.get(what, follow_redirects=True)
        # Some servers answer 403 instead of 404 for what does not exist, so any permanent refusal means "no manifest".
        if self._name and response.is_client_error and response.status_code not in TEMPORARY:
            self._is_file = True
            return [RemoteFile(self._name)]
        check(response, what)
        try:
            manifest = json.loads(response.content)
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
            named = [RemoteFile(name, row["bytes"], row["sha256"]) for name, row in manifest["files"].items()]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{what} is not a manifest of files ({error})") from error
        # Last, as when it was written: a folder that has a manifest is complete.
        return [*named, RemoteFile(MANIFEST_FILE)]

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        url = self._uri if self._is_file else f"{self._uri.rstrip('/')}/{quote(file.name)}"
        return stream(self._client, url, {}, url)
