"""Fetch a corpus, an index or a model once: ``python -m searchrl.storage.fetch URI FOLDER --sha256 CHECKSUM``."""

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

from searchrl.errors import ConfigurationError, ServiceError, Unavailable
from searchrl.input_files import check_no_lfs_pointers
from searchrl.platform.processes import exit_on_sigterm, write_termination_message
from searchrl.platform.retry import RetryPolicy
from searchrl.storage.artifact_manifest import (
    Artifact,
    FetchedMarker,
    read_artifact,
    read_marker,
    verify_folder,
    write_artifact,
    write_marker,
)
from searchrl.storage.durable_files import (
    atomic_path,
    explain_disk_full,
    fsync_folders,
    rename_durably,
    sha256_file,
    try_lock,
)
from searchrl.storage.sources import SOURCES
from searchrl.storage.sources.base import RemoteFile, Source

logger = logging.getLogger(__name__)

PATIENCE = RetryPolicy(attempts=5, first_seconds=2.0, max_seconds=16.0)
"""For each file: pauses of up to 2, 4, 8 and 16 s. Longer outages end the job, which Kubernetes starts again."""

_INDEX_GENERATIONS = "generations"  # sub-folder that only a folder of indexes has


def describe_forms() -> str:
    """Return how the URIs of all sources are written, as one list."""
    # A source with two schemes is named once.
    *others, last = dict.fromkeys(source.form for source in SOURCES.values())
    return f"{', '.join(others)} or {last}"


def describe_credentials() -> str:
    """Return for each source how its URIs are written, and where credentials come from."""
    lines = (f"  {source.form}\n      credentials: {source.credentials}" for source in SOURCES.values())
    return "\n".join(dict.fromkeys(lines))


def open_source(uri: str) -> Source:
    """Choose the source by the scheme of a URI.

    Raises:
        ConfigurationError: the scheme is unknown, or the rest of the URI is not what it needs.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in SOURCES:
        raise ConfigurationError(f"{uri}: write {describe_forms()}")
    return SOURCES[scheme](uri)


def fetch(
    uri: str, folder: Path, source: Source, *, sha256: str = "", sleep: Callable[[float], None] = time.sleep
) -> str:
    """Fetch into ``folder`` and return the checksum of its content; a folder fetched earlier is only verified.

    Files are written to a hidden folder beside it, and ``folder`` appears complete, by one rename. An interrupted fetch
    keeps the files that were complete, and resumes with the next one.

    Raises:
        ConfigurationError: the source or the checksum is wrong, or the folder holds something else.
        Unavailable: the source did not answer in several attempts, or another fetch into this folder is running.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(folder):
            # Another fetch may have completed it since.
            if not folder.exists():
                return _fetch_new(uri, folder, source, sha256, sleep)
    return _verify_fetched(uri, folder, sha256)


@contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    """Exclude other fetches into ``folder``: two of them would write the same hidden files."""
    # Beside the folder and never removed: a fetch that has opened the old file and one that creates a new one would
    # each hold a lock, but not the same one.
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        try:
            is_ours = try_lock(file)
        except OSError:
            is_ours = True
            logger.warning("%s cannot be locked here: make sure that nothing else fetches into it", folder)
        if not is_ours:
            raise Unavailable(f"another fetch into {folder} is running", None)
        yield


def _fetch_new(uri: str, folder: Path, source: Source, sha256: str, sleep: Callable[[float], None]) -> str:
    # Named after the folder, without anything random, so that the next attempt finds the files of this one.
    part = folder.with_name(f".{folder.name}.part")
    files = PATIENCE.run_blocking(source.files, sleep)
    _prepare_part(part, FetchedMarker(uri, "", source.revision))
    for file in files:
        _fetch_file(source, file, part, sleep)
    fsync_folders(part, (file.name for file in files))
    # A manifest that the source itself has is kept: it names the step and the inputs, which cannot be known here.
    artifact = verify_folder(part) or write_artifact(part, Artifact("fetched", metadata=_origin(uri, source)))
    if sha256 and artifact.digest != sha256:
        # Removed, because a resumed fetch takes the files that it finds for complete and would fail in the same way
        # forever.
        shutil.rmtree(part)
        raise ConfigurationError(f"{uri} has the checksum {artifact.digest}, expected {sha256}")
    # Before the rename: a folder of this name always has its marker.
    write_marker(part, FetchedMarker(uri, artifact.digest, source.revision))
    rename_durably(part, folder)
    return artifact.digest


def _prepare_part(part: Path, marker: FetchedMarker) -> None:
    """Make the hidden folder, or keep the one of an interrupted fetch of the same files."""
    earlier = read_marker(part)
    if earlier is not None and earlier != marker:
        # Of another source, or of an earlier revision: a mixture of both would pass every check of single files.
        shutil.rmtree(part)
    part.mkdir(exist_ok=True)
    write_marker(part, marker)


def _origin(uri: str, source: Source) -> dict[str, str]:
    return {"uri": uri, "revision": source.revision} if source.revision else {"uri": uri}


def _verify_fetched(uri: str, folder: Path, sha256: str) -> str:
    marker = read_marker(folder)
    if marker is None:
        raise ConfigurationError(f"{folder} exists and was not fetched: choose another name, or remove it")
    if marker.uri != uri:
        raise ConfigurationError(f"{folder} was fetched from {marker.uri}: choose another name, or remove it")
    # Later builds are written into a fetched folder of indexes and change which one is current, so its files cannot be
    # compared with the manifest; every index has checksums of its own.
    artifact = read_artifact(folder) if (folder / _INDEX_GENERATIONS).is_dir() else verify_folder(folder)
    is_changed = artifact is None or artifact.digest != marker.sha256
    if is_changed or (sha256 and marker.sha256 != sha256):
        raise ConfigurationError(f"{folder} is not what was fetched (checksum {marker.sha256}): remove it")
    return marker.sha256


def _fetch_file(source: Source, file: RemoteFile, part: Path, sleep: Callable[[float], None]) -> None:
    name = PurePosixPath(file.name)
    # Names come from a server. Without this check one that is wrong or hostile could overwrite any file of this user.
    if name.is_absolute() or ".." in name.parts:
        raise ConfigurationError(f"{file.name}: a file of the source lies outside its folder")
    path = part / name
    if path.is_file():  # complete, because files are renamed last
        return
    path.parent.mkdir(parents=True, exist_ok=True)

    def once() -> None:
        # Durable, because a resumed fetch takes the file for complete. Not unique: a killed fetch leaves one temporary
        # file of gigabytes, which the next attempt overwrites.
        with atomic_path(path, unique=False) as arriving:
            source.download(file, arriving)
            # Inside the block, so that a wrong file is removed instead of getting its name.
            size = arriving.stat().st_size
            is_complete = file.bytes in (None, size)
            if not is_complete or (file.sha256 and sha256_file(arriving) != file.sha256):
                raise Unavailable(f"{file.name} arrived cut off or changed ({size} of {file.bytes} bytes)", None)
            check_no_lfs_pointers(arriving)

    with explain_disk_full(str(path), "enlarge the volume or remove files, then fetch again: it continues here"):
        PATIENCE.run_blocking(once, sleep)
    sys.stdout.write(f"{file.name}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fetched or verified, 1 a temporary failure, 2 an unusable source or folder."""
    parser = argparse.ArgumentParser(
        prog="python -m searchrl.storage.fetch",
        description=__doc__,
        epilog=f"sources:\n{describe_credentials()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uri", help=describe_forms())
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument(
        "--sha256", default="", help="expected checksum of the content, as a fetch prints it; empty: any"
    )
    arguments = parser.parse_args(argv)
    exit_on_sigterm()
    try:
        with closing(open_source(arguments.uri)) as source:
            digest = fetch(arguments.uri, arguments.folder, source, sha256=arguments.sha256)
    except ConfigurationError as error:
        write_termination_message(f"fetch: {error}")
        return 2
    except (ServiceError, OSError) as error:
        write_termination_message(f"fetch: {error}")
        return 1
    sys.stdout.write(f"sha256 {digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
