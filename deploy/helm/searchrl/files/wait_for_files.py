"""Wait until files exist on the storage, then compare their folders with the checksums beside them."""

import argparse
import sys
import time
from pathlib import Path


def main() -> int:
    """Run the command. Exit codes: 0 all files exist, 1 some are still missing, 2 some are damaged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="how long to wait")
    parser.add_argument("--verify", action="store_true", help="compare every file with the manifest")
    parser.add_argument("paths", type=Path, nargs="+")
    arguments = parser.parse_args()
    # Not the wall clock, which can jump on a node that synchronizes its time.
    deadline = time.monotonic() + arguments.seconds
    missing = [path for path in arguments.paths if not path.exists()]
    while missing and time.monotonic() < deadline:
        time.sleep(1)
        missing = [path for path in missing if not path.exists()]
    if missing:
        # The container's terminationMessagePolicy is FallbackToLogsOnError, so this text becomes its termination
        # message, which kubectl describe shows.
        sys.stderr.write(_complaint(missing, arguments.seconds))
        return 1
    return _verify({path if path.is_dir() else path.parent for path in arguments.paths}) if arguments.verify else 0


def _verify(folders: set[Path]) -> int:
    from searchrl.errors import ConfigurationError  # waiting alone needs no imports
    from searchrl.storage.artifact_manifest import verify_folder

    try:
        for folder in folders:
            verify_folder(folder)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _complaint(missing: list[Path], seconds: float) -> str:
    names = ", ".join(map(str, missing))
    # The nearest existing folder and its content show a misspelled name at once.
    nearest = next(folder for folder in missing[0].parents if folder.exists())
    beside = ", ".join(sorted(path.name for path in nearest.glob("*"))[:10]) or "nothing"
    return (
        f"not there after {seconds:g} s: {names} ({nearest} holds {beside}). "
        "Put it there, or correct its name in the chart's values; a job that writes it may need longer.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
