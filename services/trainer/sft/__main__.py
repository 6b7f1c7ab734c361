"""Train a model on the rows of data files: ``python -m services.trainer.sft --config run.yaml``."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.processes import exit_on_sigterm, write_termination_message
from searchrl.platform.telemetry.logging_setup import set_up_logging
from services.trainer.runs.run_flags import RunParser, continues_run, find_run_file

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises:
    ConfigurationError: a flag that does not exist; the message names the nearest one.
    """
    parser = RunParser(
        "python -m services.trainer.sft",
        "Train a model on conversations or texts. A run folder that already holds a run is resumed; a finished run is "
        "left unchanged.",
        config="YAML file of the run",
        dry_run="read all rows, print the plan, train nothing",
    )
    return parser.parse(argv)


def run(arguments: argparse.Namespace) -> int:
    """Check the inputs and train, unless the run is finished already; return the exit code.

    Raises:
        ConfigurationError: the run cannot start as configured.
        ServiceError: it failed.
    """
    # heavy imports wait for valid arguments
    from services.trainer.runs.run_lock import LOCK_SECONDS, RunLock
    from services.trainer.sft.settings import describe_sft_plan, load_sft_config
    from services.trainer.sft.sft_run import StopRequest, read_data, train

    # The folder may have been moved or mounted elsewhere since its ``run.yaml`` was written.
    extra = [f"output={arguments.resume}"] if arguments.resume is not None else []
    config = load_sft_config(find_run_file(arguments), [*arguments.set, *extra])
    data = read_data(config)
    if arguments.dry_run:
        steps = config.training.total_steps(len(data.rows))
        sys.stdout.write(f"{describe_sft_plan(config)}rows: {data.describe()}\nsteps: {steps}\n")
        return 0
    if config.learner.ranks:
        from services.trainer.cluster.placement import join_cluster  # Ray takes seconds to import

        join_cluster()  # before the handlers below, which must replace the one that Ray installs
    lock = RunLock(config.output)
    asyncio.run(lock.acquire(LOCK_SECONDS))
    stop = StopRequest()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        # Python runs a signal handler between two instructions of the step: saving here would save weights of which
        # some are updated and some are not.
        stop.is_set = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    is_complete = train(config, data, stop, resume=continues_run(arguments, config.output))
    lock.release()
    return 0 if is_complete else arguments.unfinished_exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done or stopped with a checkpoint, 1 failed, 2 cannot run as configured."""
    set_up_logging("sft", "text")
    try:
        return run(parse_arguments(argv))
    except ConfigurationError as error:
        write_termination_message(f"sft: {error}")
        return 2
    except ServiceError as error:
        logger.error("the run stopped: %s", error)
        return 1


if __name__ == "__main__":
    exit_on_sigterm()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit waits for threads of torch, which may delay it for long; everything that must survive is on disk.
    os._exit(code)
