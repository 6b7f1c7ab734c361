"""Reads and writes the marker file that records where a folder was fetched from."""

import json
from pathlib import Path
from typing import NamedTuple

from searchrl.input_files import parse_json
from searchrl.storage.durable_files import atomic_write

MARKER = ".fetched.json"


class FetchedMarker(NamedTuple):
    """Where a folder was fetched from, and the checksum of its content at that time.

    Attributes:
        sha256: empty while the fetch is running.
        revision: the version of the source that was fetched, such as the commit of a hub's repository; empty if the
            source has no versions.
    """

    uri: str
    sha256: str
    revision: str = ""


def write_marker(folder: Path, marker: FetchedMarker) -> None:
    """Write the marker into the folder."""
    # Durable, because the folder gets its name by a later rename, which could otherwise survive a power cut alone.
    atomic_write(folder / MARKER, json.dumps(marker._asdict()))


def read_marker(folder: Path) -> FetchedMarker | None:
    """Read the marker of a folder; None if it has none, or an unreadable one."""
    try:
        content = parse_json((folder / MARKER).read_text())
        return FetchedMarker(str(content["uri"]), str(content["sha256"]), str(content["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_origin(folder: Path) -> str | None:
    """Return the URI that the folder was fetched from; None if it was not fetched."""
    marker = read_marker(folder)
    return marker.uri if marker else None
