"""Checks what this machine offers to any use of SearchRL; each finding says what to do next."""

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from searchrl.platform.capacity import check_disk, main_memory, size_text
from searchrl.platform.findings import Finding, FindingState

NEEDED_FREE = 5 * 2**30  # bytes of disk for checkpoints of a small run; less is a warning
NEEDED_MEMORY = 4 * 2**30  # bytes for the quickstart: its services, the trainer and the evaluation; less is a warning
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
DISTRIBUTION = "searchrl"
EXTRAS = ("retriever", "generator", "trainer", "evaluator")
PROBE_SECONDS = 20  # nvidia-smi may need several seconds while the driver starts; a broken driver may hang it


def check_room(folder: Path) -> Iterator[Finding]:
    """Check the memory, disk and ports that any run needs; ``folder`` is where it will be written."""
    yield _memory()
    yield check_disk(folder, NEEDED_FREE, "checkpoints", low=FindingState.WARNING)
    yield _ports()


def check_machine() -> Iterator[Finding]:
    """Check everything else: Python, cores, packages, GPU and optional programs."""
    checks: tuple[Callable[[], Finding], ...] = (_python, _cores)
    for check in checks:
        yield check()
    for extra in EXTRAS:
        yield _packages(extra)
    yield _gpu()
    yield _program("redis-server", "tests of the shared cache", "Debian: apt-get install redis-server")
    yield _program("grpcurl", "calling gRPC manually", "optional: see github.com/fullstorydev/grpcurl")
    yield _vllm()


def _python() -> Finding:
    version = platform.python_version()
    if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        return Finding("python", FindingState.OK, f"{version} in {sys.prefix}")
    return Finding(
        "python", FindingState.FAILED, version, "use Python 3.11, 3.12 or 3.13: make install PYTHON=python3.11"
    )


def _cores() -> Finding:
    # The cores that this process may use; a container or taskset may allow fewer than the machine has. A CPU quota of a
    # cgroup does not show here.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    state = FindingState.OK if usable >= 2 else FindingState.WARNING
    return Finding("cores", state, str(usable), "" if usable >= 2 else "the quickstart needs two; it takes longer")


def _memory() -> Finding:
    available = main_memory().available
    found = f"{size_text(available)} free"
    if available >= NEEDED_MEMORY:
        return Finding("memory", FindingState.OK, found)
    return Finding(
        "memory", FindingState.WARNING, found, f"the quickstart needs {size_text(NEEDED_MEMORY)}: end something"
    )


def _ports() -> Finding:
    """Check that a client can reach a loopback listener; some sandboxes forbid it."""
    try:
        # Connected too, because listening alone does not show that clients can reach a service.
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5):
            return Finding("ports", FindingState.OK, "services can listen on 127.0.0.1")
    except OSError as error:
        return Finding("ports", FindingState.FAILED, str(error), "allow listening on the loopback interface")


def _packages(extra: str) -> Finding:
    """Check that the distributions of ``pip install 'searchrl[extra]'`` are installed."""
    subject = f"{extra} extra"
    try:
        # From the installed metadata, so the list cannot differ from pyproject.toml. Nothing is imported: torch alone
        # takes seconds.
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            subject, FindingState.FAILED, f"{DISTRIBUTION} is not installed", "make install, or pip install -e ."
        )
    wanted = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in required if f"extra == '{extra}'" in text]
    missing = [name for name in wanted if not _is_installed(name)]
    if missing:
        return Finding(subject, FindingState.FAILED, f"missing: {', '.join(missing)}", f"pip install -e '.[{extra}]'")
    return Finding(subject, FindingState.OK, "its packages are installed")


def _is_installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", FindingState.WARNING, "none", "not needed for small worlds; larger models need one")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return Finding("gpu", FindingState.WARNING, "nvidia-smi fails", "check the driver: nvidia-smi")
    return Finding("gpu", FindingState.OK, "; ".join(listed.strip().splitlines()))


def _program(name: str, use: str, advice: str) -> Finding:
    found = shutil.which(name)
    if found:
        return Finding(name, FindingState.OK, found)
    return Finding(name, FindingState.WARNING, f"not found: only for {use}", advice)


def _vllm() -> Finding:
    own = Path(".venv-vllm/bin/vllm")
    if own.exists() or shutil.which("vllm"):
        return Finding("vllm", FindingState.OK, str(own if own.exists() else shutil.which("vllm")))
    return Finding("vllm", FindingState.WARNING, "not installed: only for --engine vllm", "make install-vllm")
