"""Say why a run is slow, stalls or learns nothing: ``python -m services.trainer.runs.explain_run DIR``."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import read_yaml
from services.trainer.runs.run_explanation import RunFacts, explain_run
from services.trainer.runs.run_folder import RunFolder
from services.trainer.runs.run_lock import RunLock


def read_facts(path: Path) -> RunFacts:
    """Read what the folder of a run says; nothing is written there.

    Raises:
        ConfigurationError: it is not the folder of a run that trains from rollouts.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigurationError(f"{path} holds no run: it has no {folder.config.name}")
    settings = read_yaml(folder.config)
    if "rollouts" not in settings:
        raise ConfigurationError(f"{path} is no run that trains from rollouts")
    return RunFacts(
        str(path),
        folder.step_lines(),
        settings,
        _is_trained(path),
        folder.final.is_dir(),
        time.time(),
        folder.events(),
    )


def _is_trained(path: Path) -> bool | None:
    try:
        return RunLock(path).is_held()
    except ConfigurationError:  # a copy, or a folder of another user: what it says is explained all the same
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 explained, 2 there is no such run."""
    parser = argparse.ArgumentParser(prog="searchrl runs explain", description=__doc__)
    parser.add_argument("run", type=Path, metavar="DIR", help="run folder")
    arguments = parser.parse_args(argv)
    try:
        sentences = explain_run(read_facts(arguments.run))
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("".join(f"{sentence}\n" for sentence in sentences))
    return 0


if __name__ == "__main__":
    sys.exit(main())
