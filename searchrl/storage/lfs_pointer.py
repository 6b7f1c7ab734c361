"""Tells a Git LFS pointer from the file it stands for."""

from pathlib import Path

LFS_HEADER = b"version https://git-lfs"


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file holds only the address of a large file: the repository was cloned without Git LFS."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_HEADER)) == LFS_HEADER
