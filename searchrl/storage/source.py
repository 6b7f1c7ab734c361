"""What does a place to fetch from offer? A list of files, and their bytes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import httpx

from searchrl.errors import ConfigurationError, Unavailable

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the source; ``bytes`` and ``sha256`` where the source knows them."""

    name: str
    bytes: int | None = None
    sha256: str = ""


class Source(Protocol):
    """A folder elsewhere."""

    def files(self) -> list[RemoteFile]:
        """Everything to fetch.

        Raises:
            ConfigurationError: it does not exist, or access is refused.
            Unavailable: the place did not answer; worth another try.
        """
        ...

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        """The bytes of one file; raises as ``files``."""
        ...


def check(response: httpx.Response, what: str) -> None:
    """Raise what the status means for a fetch."""
    if response.is_success:
        return
    if response.status_code in TEMPORARY:
        raise Unavailable(f"{what}: HTTP {response.status_code}", None)
    meaning = {401: "access refused: give credentials", 403: "access refused", 404: "there is no such thing"}
    raise ConfigurationError(f"{what}: {meaning.get(response.status_code, 'refused')} (HTTP {response.status_code})")


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """A broken connection is a temporary failure."""
    try:
        yield
    except httpx.HTTPError as error:
        raise Unavailable(f"{what}: {type(error).__name__} {error}", None) from error


def stream(client: httpx.Client, url: str, headers: Mapping[str, str], what: str) -> Iterator[bytes]:
    """The body of a GET in blocks."""
    with reaching(what), client.stream("GET", url, headers=dict(headers), follow_redirects=True) as response:
        check(response, what)
        yield from response.iter_bytes(BLOCK_BYTES)
