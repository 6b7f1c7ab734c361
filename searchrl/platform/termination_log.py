"""Writes the termination message that a pod's status and ``kubectl describe pod`` show for a failed process."""

import contextlib
import sys
from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes mounts this file into every container; outside a container it does not exist."""


def write_termination_message(sentence: str) -> None:
    """Write the sentence to standard error and, inside a container, to the termination log of Kubernetes."""
    sys.stderr.write(f"{sentence}\n")
    if TERMINATION_LOG.is_file():
        # The message is on standard error already; a failure to copy it must not replace the process's own exit code.
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(f"{sentence}\n")
