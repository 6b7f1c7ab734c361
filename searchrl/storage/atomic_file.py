"""Writes a file so that readers, and a power cut, find the old content or the complete new one."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a new file beside ``path`` (text as UTF-8), flush it to disk (fsync), and rename it to ``path``.

    Each call has its own temporary file, so that two processes that write the same path do not mix their contents.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, which alone may survive a power cut
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # absent after a success
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
