"""How does a command hand over to a service's own program? It becomes that program."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def run_module(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by ``python -m module arguments``, so that signals and exit code are the program's."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
