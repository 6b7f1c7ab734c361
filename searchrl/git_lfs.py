"""Tells a Git LFS pointer from the file it stands for."""

from pathlib import Path

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
