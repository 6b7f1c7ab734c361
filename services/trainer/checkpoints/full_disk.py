"""How is a full disk told from other failures, whichever library was writing?"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from searchrl.errors import Unavailable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def full_disk_named(what: str, advice: str) -> Iterator[None]:
    """Turn "no space left" inside the block into one sentence.

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
    """The system's error number; safetensors gives it as text only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
