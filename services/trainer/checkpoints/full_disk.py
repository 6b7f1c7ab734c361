"""Recognizes a full disk behind the errors of every library that writes files."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from searchrl.errors import Unavailable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No space on the device, and no space left in the quota of the user or project."""


@contextmanager
def explain_disk_full(what: str, advice: str) -> Iterator[None]:
    """Turn "no space left" inside the block into an error that says what was written and what to do.

    Raises:
        Unavailable: the disk or the quota is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if error_number(error) not in FULL:
            raise
        raise Unavailable(f"no space left for {what}; {advice}", retry_after_seconds=None) from error


def error_number(error: Exception) -> int | None:
    """The system's error number; safetensors reports it only inside its message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
