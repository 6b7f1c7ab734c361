"""Replaces a command by a service's own program."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def run_module(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by ``python -m module arguments``; signals and exit code are then the program's.

    Buffered output is flushed first, because exec discards it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
