"""What do the pod's status and ``kubectl describe pod`` say of a process that gives up? Its sentence, not its log."""

import contextlib
import sys
from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes mounts this file into every container; it is nowhere else."""


def say_last(sentence: str) -> None:
    """Write the sentence to standard error, and where Kubernetes looks for a container's last words."""
    sys.stderr.write(f"{sentence}\n")
    if TERMINATION_LOG.is_file():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(f"{sentence}\n")
