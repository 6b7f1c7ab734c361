"""Trains a searcher: ``python -m services.trainer --config run.yaml [--set NAME=VALUE] [--dry-run]``.

A run folder that already holds a run is resumed; a finished run is left unchanged.
"""

from searchrl.platform.processes import exit_on_sigterm
from services.trainer.command_line import main

if __name__ == "__main__":
    exit_on_sigterm()  # until the event loop takes over
    main()
