"""Removes Python's package installers from an image: ``python drop_installers.py``. Standard library only.

Base images contain pip and ensurepip. Nothing installs packages at run time, and an attacker in the container cannot
use what is not there. Exits with an error if any of their files are left.
"""

import shutil
import sys
from pathlib import Path

INSTALLERS = ("pip", "ensurepip")
ROOTS = (Path("/usr/local/lib"), Path("/usr/lib"), Path("/opt/searchrl"))
PROGRAMS = (
    Path("/usr/local/bin"),
    Path("/usr/bin"),
    Path("/opt/searchrl/.venv/bin"),
    Path("/opt/searchrl/.venv-vllm/bin"),
)


def installers_below(roots: tuple[Path, ...], programs: tuple[Path, ...]) -> list[Path]:
    """Return the paths of the installers' packages, metadata and programs."""
    packages = [
        path
        for root in roots
        for name in INSTALLERS
        for pattern in (f"python3*/{name}", f"python3*/*-packages/{name}", f"python3*/*-packages/{name}-*.dist-info")
        for path in (*root.glob(pattern), *root.glob(f"*/lib/{pattern}"))
    ]
    return packages + [path for folder in programs for path in folder.glob("pip*")]


def main() -> int:
    for path in installers_below(ROOTS, PROGRAMS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    left = installers_below(ROOTS, PROGRAMS)
    if left:
        sys.stderr.write(f"still there: {', '.join(map(str, left))}\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
