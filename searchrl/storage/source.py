"""Defines what a source of files offers, and the HTTP requests that all sources share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import httpx

from searchrl.errors import ConfigurationError, Unavailable

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses after which a retry may succeed
BLOCK_BYTES = 1 << 20  # memory of a fetch; smaller blocks mean more system calls


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the source; ``bytes`` (its size) and ``sha256`` are given if the source knows them."""

    name: str
    bytes: int | None = None
    sha256: str = ""


class Source(Protocol):
    """A remote folder."""

    def files(self) -> list[RemoteFile]:
        """List the files to fetch.

        Raises:
            ConfigurationError: the folder does not exist, or access is refused.
            Unavailable: the server did not answer; a retry may succeed.
        """
        ...

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        """Yield the content of one file; raises like ``files``."""
        ...


def check(response: httpx.Response, what: str) -> None:
    """Raise the error that the status of an answer means for a fetch.

    Raises:
        Unavailable: a temporary failure.
        ConfigurationError: any other failure.
    """
    if response.is_success:
        return
    # Any other status ends the fetch at once: a wrong address or key stays wrong, and a job that retries it for hours
    # hides the reason.
    if response.status_code in TEMPORARY:
        raise Unavailable(f"{what}: HTTP {response.status_code}", None)
    meaning = {401: "access refused: give credentials", 403: "access refused", 404: "not found"}
    raise ConfigurationError(f"{what}: {meaning.get(response.status_code, 'refused')} (HTTP {response.status_code})")


@contextmanager
def translate_connection_errors(what: str) -> Iterator[None]:
    """Translate connection errors in the block to Unavailable."""
    try:
        yield
    except httpx.HTTPError as error:
        raise Unavailable(f"{what}: {type(error).__name__} {error}", None) from error


def stream(client: httpx.Client, url: str, headers: Mapping[str, str], what: str) -> Iterator[bytes]:
    """Yield the body of a GET in blocks; raises like ``check``."""
    with (
        translate_connection_errors(what),
        client.stream("GET", url, headers=dict(headers), follow_redirects=True) as response,
    ):
        check(response, what)
        # Errors that occur while the body is read are translated as well: the ``with`` stays open as long as this
        # generator.
        yield from response.iter_bytes(BLOCK_BYTES)
