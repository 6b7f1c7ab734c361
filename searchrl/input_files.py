"""Parses the JSON of files that a user or another program wrote, and recognizes Git LFS pointers among them."""

import json
from pathlib import Path
from typing import Any

from searchrl.errors import ConfigurationError

LFS_HEADER = b"version https://git-lfs"
IS_POINTER = "is a Git LFS pointer, not the file itself; run git lfs pull"


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file holds only the address of a large file: the repository was cloned without Git LFS."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_HEADER)) == LFS_HEADER


def check_no_lfs_pointers(path: Path) -> None:
    """Look at a file, or at every file of a folder.

    Raises:
        ConfigurationError: one of them is a pointer.
    """
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if is_lfs_pointer(file):
            raise ConfigurationError(f"{file} {IS_POINTER}, or fetch it")


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deep for the parser.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        # A RecursionError would pass every "except ValueError" and end the program with a traceback.
        raise ValueError("nested too deep") from error
