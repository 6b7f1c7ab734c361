"""Base class of the clients of the four services: owns the channel and closes it; reads the API key in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Self, TypeVar

import grpc

from searchrl.clients.channel import ServiceChannel, Tls
from searchrl.errors import ConfigurationError
from searchrl.platform.retry import RetryPolicy

Stub = TypeVar("Stub")


class ServiceClient(Generic[Stub]):
    """Base of the typed clients; usable as an async context manager.

    Args:
        target: "host:port".
        key: API key; None if the service needs none.
        timeout_seconds: limit of each call, with its retries; None: only the caller's deadline.
    """

    def __init__(
        self,
        target: str,
        stub: Callable[[grpc.aio.Channel], Stub],
        *,
        key: str | None,
        timeout_seconds: float | None,
        tls: Tls | None,
        retries: RetryPolicy | None,
    ) -> None:
        self._channel = ServiceChannel(target, stub, key=key, timeout_seconds=timeout_seconds, tls=tls, retries=retries)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def read_key(path: Path | None) -> str | None:
    """Return the API key in a file; None if no file is named.

    Raises:
        ConfigurationError: the file cannot be read, or is no text.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read the key file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the key file {path} is not UTF-8 text") from error
