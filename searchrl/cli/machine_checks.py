"""What does this machine offer SearchRL? One check per question, each with what to do where the answer is no."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import psutil

NEEDED_FREE_GB = 5
NEEDED_MEMORY_GB = 4
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
EXTRAS = {
    "retriever": ("tantivy", "faiss", "numpy", "redis"),
    "generator": ("openai",),
    "trainer": ("torch", "transformers", "safetensors", "pyarrow"),
    "evaluator": ("numpy", "matplotlib", "pyarrow"),
}
PROBE_SECONDS = 20


class Verdict(StrEnum):
    """``OPTIONAL``: works without, but something is missing."""

    GOOD = "good"
    OPTIONAL = "optional"
    BAD = "bad"


class Finding(NamedTuple):
    """One line: what was looked at, what was found, what to do."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """Every check in turn; ``folder`` is where runs are to be written."""
    checks: tuple[Callable[[], Finding], ...] = (_python, _cores, _memory, lambda: _disk(folder), _ports)
    for check in checks:
        yield check()
    for extra, modules in EXTRAS.items():
        yield _packages(extra, modules)
    yield _torch()
    yield _gpu()
    yield _program("redis-server", "tests of the shared cache", "Debian: apt-get install redis-server")
    yield _program("grpcurl", "calling gRPC by hand", "optional: see github.com/fullstorydev/grpcurl")
    yield _vllm()


def _python() -> Finding:
    version = platform.python_version()
    if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        return Finding("python", Verdict.GOOD, f"{version} in {sys.prefix}")
    return Finding("python", Verdict.BAD, version, "use Python 3.11, 3.12 or 3.13: make install PYTHON=python3.11")


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    verdict = Verdict.GOOD if usable >= 2 else Verdict.OPTIONAL
    return Finding("cores", verdict, str(usable), "" if usable >= 2 else "the quickstart wants two; it takes longer")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 1e9
    if free >= NEEDED_MEMORY_GB:
        return Finding("memory", Verdict.GOOD, f"{free:.1f} GB free")
    return Finding(
        "memory", Verdict.OPTIONAL, f"{free:.1f} GB free", f"training wants {NEEDED_MEMORY_GB} GB: end something"
    )


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if not os.access(existing, os.W_OK):
        return Finding("disk", Verdict.BAD, f"cannot write into {existing}", "choose another --folder")
    verdict = Verdict.GOOD if free >= NEEDED_FREE_GB else Verdict.OPTIONAL
    advice = "" if verdict is Verdict.GOOD else f"free some space: checkpoints want {NEEDED_FREE_GB} GB"
    return Finding("disk", verdict, f"{free:.0f} GB free in {existing}", advice)


def _ports() -> Finding:
    """A loopback listener that a client reaches; some sandboxes forbid it."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5):
            return Finding("ports", Verdict.GOOD, "services can listen on 127.0.0.1")
    except OSError as error:
        return Finding("ports", Verdict.BAD, str(error), "allow listening on the loopback interface")


def _packages(extra: str, modules: tuple[str, ...]) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return Finding(extra, Verdict.BAD, f"missing: {', '.join(missing)}", f"pip install -e '.[{extra}]'")
    return Finding(extra, Verdict.GOOD, "its packages are installed")


def _torch() -> Finding:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Finding("torch", Verdict.BAD, "not installed", "make install, or pip install torch")
    return Finding("torch", Verdict.GOOD, version)


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", Verdict.OPTIONAL, "none", "not needed for small worlds; larger models want one")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return Finding("gpu", Verdict.OPTIONAL, "nvidia-smi fails", "check the driver: nvidia-smi")
    return Finding("gpu", Verdict.GOOD, "; ".join(listed.strip().splitlines()))


def _program(name: str, use: str, advice: str) -> Finding:
    found = shutil.which(name)
    if found:
        return Finding(name, Verdict.GOOD, found)
    return Finding(name, Verdict.OPTIONAL, f"not found: only for {use}", advice)


def _vllm() -> Finding:
    own = Path(".venv-vllm/bin/vllm")
    if own.exists() or shutil.which("vllm"):
        return Finding("vllm", Verdict.GOOD, str(own if own.exists() else shutil.which("vllm")))
    return Finding("vllm", Verdict.OPTIONAL, "not installed: only for --engine vllm", "make install-vllm")
