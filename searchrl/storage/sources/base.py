"""Defines what a source of files offers, and how the status of an HTTP answer is reported."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from searchrl.errors import ConfigurationError, ServiceError, Unavailable

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses after which a retry may succeed
BLOCK_BYTES = 1 << 20  # memory of a fetch; smaller blocks mean more system calls
SILENCE_SECONDS = 60.0
"""Without a byte, after which a connection counts as lost. Not for an entire file, which may be tens of gigabytes."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the source; ``bytes`` (its size) and ``sha256`` are given if the source knows them."""

    name: str
    bytes: int | None = None
    sha256: str = ""


class Source(ABC):
    """A remote folder, or one remote file.

    Attributes:
        schemes: what the URIs of the source start with, before ``://``.
        form: how a URI is written, for help and messages.
        credentials: where credentials come from, as the help and a refusal say it.
        revision: the version of the files, if the source has versions; known once the files are listed.
    """

    schemes: ClassVar[tuple[str, ...]]
    form: ClassVar[str]
    credentials: ClassVar[str]
    revision: str = ""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def files(self) -> list[RemoteFile]:
        """List the files to fetch.

        Raises:
            ConfigurationError: the folder does not exist, or access is refused.
            Unavailable: the server did not answer; a retry may succeed.
        """

    @abstractmethod
    def download(self, file: RemoteFile, path: Path) -> None:
        """Write the content of one file to ``path``; raises like ``files``."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Close the connections that the source holds."""

    def malformed(self) -> ConfigurationError:
        """Return the error for a URI that does not have the source's form."""
        return ConfigurationError(f"{self.uri}: write {self.form}")

    def refusal(self, status: int, what: str, reason: str = "") -> ServiceError | ConfigurationError:
        """Return the error that the status of an HTTP answer means for a fetch.

        Args:
            reason: the server's own name for it, if it gave one.
        """
        answer = f"HTTP {status} {reason}".strip()
        if status in TEMPORARY:
            return Unavailable(f"{what}: {answer}", None)
        # Any other status ends the fetch at once: a wrong address or key stays wrong, and a job that retries it for
        # hours hides the reason.
        if status in (401, 403):
            return ConfigurationError(f"{what}: access refused ({answer}); credentials: {self.credentials}")
        return ConfigurationError(f"{what}: {'not found' if status == 404 else 'refused'} ({answer})")
