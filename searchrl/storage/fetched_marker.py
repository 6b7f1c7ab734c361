"""Notes in a fetched folder where it came from."""

import json
from pathlib import Path
from typing import NamedTuple

MARKER = ".fetched.json"


class FetchedMarker(NamedTuple):
    """Where a folder was fetched from, and the checksum of the whole at that time."""

    uri: str
    sha256: str


def write_marker(folder: Path, marker: FetchedMarker) -> None:
    """Leave the note."""
    (folder / MARKER).write_text(json.dumps(marker._asdict()))


def read_marker(folder: Path) -> FetchedMarker | None:
    """The note of a folder; None if it has none that can be read."""
    try:
        content = json.loads((folder / MARKER).read_text())
        return FetchedMarker(str(content["uri"]), str(content["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetched_from(folder: Path) -> str | None:
    """The address that the folder was fetched from."""
    marker = read_marker(folder)
    return marker.uri if marker else None
