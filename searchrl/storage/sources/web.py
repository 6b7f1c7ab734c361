"""Fetches a file, or a folder with a manifest, from a web server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.input_files import parse_json
from searchrl.storage.artifact_manifest import FORMAT, MANIFEST_FILE
from searchrl.storage.sources.base import BLOCK_BYTES, SILENCE_SECONDS, TEMPORARY, RemoteFile, Source


class WebSource(Source):
    """A folder ``https://host/folder/`` whose ``manifest.json`` names its files, or a file ``https://host/file.jsonl``.

    An address whose last part has a dot is a file, unless it ends with a slash. Without a dot it is a folder if it has
    a manifest, else a file (``part_aa`` of a split archive).
    """

    schemes = ("https", "http")
    form = "https://HOST/PATH"
    credentials = "none, or USER:PASSWORD@ before the host"

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._client = httpx.Client(timeout=SILENCE_SECONDS, follow_redirects=True)
        path = urlsplit(uri).path
        self._name = unquote(path.rpartition("/")[2])
        self._is_file = "." in self._name

    def close(self) -> None:
        self._client.close()

    def files(self) -> list[RemoteFile]:
        if self._is_file:
            return [RemoteFile(self._name)]
        what = f"{self.uri.rstrip('/')}/{MANIFEST_FILE}"
        with _translate_connection_errors(what):
            response = self._client.get(what)
        # Some servers answer 403 instead of 404 for what does not exist, so any permanent refusal means "no manifest".
        if self._name and response.is_client_error and response.status_code not in TEMPORARY:
            self._is_file = True
            return [RemoteFile(self._name)]
        if not response.is_success:
            raise self.refusal(response.status_code, what)
        try:
            manifest = parse_json(response.content)
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
            named = [RemoteFile(name, row["bytes"], row["sha256"]) for name, row in manifest["files"].items()]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{what} is not a manifest of files ({error})") from error
        # Last, as when it was written: a folder that has a manifest is complete.
        return [*named, RemoteFile(MANIFEST_FILE)]

    def download(self, file: RemoteFile, path: Path) -> None:
        url = self.uri if self._is_file else f"{self.uri.rstrip('/')}/{quote(file.name)}"
        # Errors that occur while the body is read are translated as well. httpx sends no password to another host.
        with _translate_connection_errors(url), self._client.stream("GET", url) as response:
            if not response.is_success:
                raise self.refusal(response.status_code, url)
            with path.open("wb") as target:
                for block in response.iter_bytes(BLOCK_BYTES):
                    target.write(block)


@contextmanager
def _translate_connection_errors(what: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise Unavailable(f"{what}: {type(error).__name__} {error}", None) from error
