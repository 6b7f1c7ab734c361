"""Finds the index of a corpus, or builds one with the retriever's build command in a separate process."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.storage.durable_files import sha256_file

BUILD_MODULE = "services.retriever.build_index"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class IndexRequest:
    """The index to serve. If ``output`` is None, the folder follows from corpus and kind."""

    corpus: Path
    kind: str = "bm25"
    encoder: Path | None = None
    output: Path | None = None


def corpus_sha256(path: Path) -> str:
    """Compute the SHA-256 of a corpus.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        return sha256_file(path)
    except OSError as error:
        raise ConfigurationError(f"cannot read the corpus {path}: {error.strerror}") from error


def index_folder(index: IndexRequest, below: Path, sha256: str) -> Path:
    """Return the folder of this index: one per corpus and kind, so that two versions of a corpus never share one."""
    # 48 bits of the checksum: among a million corpora, two share a folder with a probability of 0.2 %.
    return index.output or below / f"{index.kind}-{sha256[:12]}"


def build_index(folder: Path, index: IndexRequest, progress: Progress) -> None:
    """Build and activate an index, unless the folder has an intact one of the same corpus and settings.

    A failed build leaves no partial index.

    The build reports its progress as JSON lines on stderr; any other line is kept for the error message.

    Raises:
        ConfigurationError: the corpus or the folder is unusable; the message is the build command's own sentence.
    """
    command = [sys.executable, "-m", BUILD_MODULE, "--corpus", str(index.corpus), "--output", str(folder)]
    command += ["--kind", index.kind, "--progress", "json", "--if-missing"]
    if index.encoder is not None:
        command += ["--encoder", str(index.encoder)]
    # The pipe is read until its end, although only the last line is used: a build that fills it would block.
    output: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        try:
            for line in build.stderr:
                if not _is_progress(line, progress):
                    output.append(line.strip())
        except BaseException:
            # On Ctrl-C or an error: leaving the ``with`` waits for the build, which would otherwise run to its end.
            build.terminate()
            raise
    if build.returncode != 0:
        reason = next((line for line in reversed(output) if line), f"exit code {build.returncode}")
        raise ConfigurationError(f"no index was built: {reason.removeprefix('build_index: ')}")


def _is_progress(line: str, progress: Progress) -> bool:
    try:
        step = json.loads(line)
        progress(str(step["phase"]), int(step["done"]), int(step["total"]))
    except (ValueError, KeyError, TypeError):
        return False
    return True
