"""Fetches a folder of a bucket through obstore, which speaks the protocols of S3, Google Cloud Storage and Azure."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import certifi
import httpx

from searchrl.errors import ConfigurationError, ServiceError, Unavailable
from searchrl.storage.sources.base import BLOCK_BYTES, SILENCE_SECONDS, RemoteFile, Source

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(days=1)}
"""Of one request, inside the attempts of a fetch. An interrupted body continues at the byte where it broke off. The
time counts from the start of the request, and a file of many gigabytes takes longer than the default of 3 minutes."""
Store = TypeVar("Store")
METADATA_SECONDS = 1.0  # a metadata service is on the machine itself; elsewhere its address often answers nothing

_STATUS = re.compile(r"status code: (\d{3})")
_REASON = re.compile(r"<Code>(\w+)</Code>")  # in the body of an error of S3, Google Cloud Storage and Azure


class ObjectStoreSource(Source):
    """All objects below ``SCHEME://BUCKET/PATH``, or the one object of that name.

    Without any credentials requests are anonymous, for public buckets.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._bucket, _, path = uri.partition("://")[2].partition("/")
        self._path = path.strip("/")
        self._is_object = False
        if not self._bucket or not self._path:
            raise self.malformed()

    @abstractmethod
    def open_store(self, bucket: str) -> ObjectStore:
        """Return the bucket, with the credentials of the environment."""

    @cached_property
    def _store(self) -> ObjectStore:
        return self.open_store(self._bucket)

    def files(self) -> list[RemoteFile]:
        with self._translate(self.uri):
            objects = [row for page in self._store.list(self._path) for row in page]
        # Some tools create empty objects such as "folder/" for folders, and obstore drops the slash of their names.
        folders = {str(parent) for row in objects for parent in PurePosixPath(row["path"]).parents}
        named = (row for row in objects if row["path"] != self._path and (row["size"] or row["path"] not in folders))
        found = [RemoteFile(row["path"].removeprefix(f"{self._path}/"), row["size"]) for row in named]
        # A prefix that does not exist is listed without an error, as an empty page.
        return found or [self._single_object()]

    def _single_object(self) -> RemoteFile:
        with self._translate(self.uri):
            try:
                row: ObjectMeta = self._store.head(self._path)
            except FileNotFoundError as error:
                raise ConfigurationError(f"{self.uri}: nothing lies there") from error
        self._is_object = True
        return RemoteFile(PurePosixPath(self._path).name, row["size"])

    def download(self, file: RemoteFile, path: Path) -> None:
        key = self._path if self._is_object else f"{self._path}/{file.name}"
        with path.open("wb") as target:
            if file.bytes == 0:  # of an empty folder's object, whose real name ends with a slash, none can be read
                return
            with self._translate(f"{self.uri}: {file.name}"):
                for block in self._store.get(key).stream(BLOCK_BYTES):
                    target.write(block)

    @contextmanager
    def _translate(self, what: str) -> Iterator[None]:
        """Translate the errors of obstore; those of the local disk pass unchanged."""
        try:
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise ConfigurationError(f"{what}: {error}; install searchrl[storage]") from error
        try:
            yield
        except (BaseError, OSError) as error:
            # obstore raises Python's FileNotFoundError for what does not exist, but without a number of the system.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._meaning(error, what) from error

    def _meaning(self, error: Exception, what: str) -> ServiceError | ConfigurationError:
        from obstore.exceptions import InvalidPathError

        # obstore gives the status in its message alone. Only the status and the server's code are passed on: the
        # message contains the address, which may be a signed one.
        text = str(error).partition("\n\nDebug source:")[0]
        if status := _STATUS.search(text):
            reason = _REASON.search(text)
            return self.refusal(int(status[1]), what, reason[1] if reason else "")
        if isinstance(error, InvalidPathError):  # one with "..", or with nothing between two slashes
            return ConfigurationError(f"{what}: a name lies outside its folder or is no path: {text}")
        connection = text.partition("HTTP error: ")[2]
        if connection and connection != "builder error":  # an address that cannot be one
            return Unavailable(f"{what}: {connection}", None)
        return ConfigurationError(f"{what}: {text.partition(' error: ')[2] or text}")


def connect(
    store: Callable[..., Store], bucket: str, endpoint: str | None, *, has_credentials: bool, **config: object
) -> Store:
    """Return a bucket, with this project's certificates, timeouts and retries.

    Args:
        store: the class of obstore for this cloud.
        endpoint: the address of the store, if it is not the provider's.
        has_credentials: False makes the requests anonymous.
        config: further settings of this class.
    """
    if not has_credentials:
        config["skip_signature"] = True
    return store(bucket, config=config, client_options=_client_options(endpoint), retry_config=RETRIES)


def _client_options(endpoint: str | None) -> ClientConfig:
    options: ClientConfig = {
        # Bounds an entire file by default, at 30 s.
        "timeout": timedelta(days=1),
        "read_timeout": timedelta(seconds=SILENCE_SECONDS),
        "allow_http": bool(endpoint) and str(endpoint).startswith("http://"),
    }
    # certifi as in httpx: without any certificate, as in an image that has none of its own, obstore does not start.
    bundle = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where()
    try:
        options["root_certificate"] = Path(bundle).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the certificates of AWS_CA_BUNDLE or SSL_CERT_FILE: {error}") from error
    return options


def has_variable(*names: str) -> bool:
    """Return whether one of the environment variables is set and not empty."""
    return any(os.environ.get(name) for name in names)


def ask_metadata(method: str, url: str, headers: Mapping[str, str]) -> str | None:
    """Ask the metadata service of a cloud's machine; None if there is none, or if it refuses."""
    try:
        # Never through a proxy: the address is local to the machine.
        response = httpx.request(method, url, headers=dict(headers), timeout=METADATA_SECONDS, trust_env=False)
    except httpx.HTTPError:
        return None
    return response.text if response.is_success else None
