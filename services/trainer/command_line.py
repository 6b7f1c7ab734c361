"""The trainer's command line: checks or trains a run, and answers status and control calls meanwhile."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic_settings import SettingsConfigDict

from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.processes import write_termination_message
from searchrl.platform.settings import ServiceSettings
from services.trainer.runs.run_flags import RunParser, continues_run, find_run_file

if TYPE_CHECKING:
    from services.trainer.runs.run_state import RunState
    from services.trainer.settings import RunConfig

logger = logging.getLogger(__name__)

DESCRIPTION = "Train a searcher. A run folder that already holds a run is resumed; a finished run is left unchanged."


class TrainerSettings(ServiceSettings):
    """Settings of the trainer's process: ports, keys and logging; from ``TRAINER_`` variables and ``--set``.

    Those of the run are in ``settings.py``, which imports torch; wrong arguments are refused before.
    """

    model_config = SettingsConfigDict(env_prefix="TRAINER_")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises:
    ConfigurationError: a flag that does not exist; the message names the nearest one.
    """
    parser = RunParser(
        "python -m services.trainer",
        DESCRIPTION,
        config="YAML file of the run; it may name a preset",
        dry_run="check everything, print the plan, train nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: the checks as JSON, without the plan")
    return parser.parse(argv)


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the assignments of the run from those of the process (``listen.http_port=0`` and the like)."""
    own = set(TrainerSettings.model_fields)
    process = [text for text in assignments if text.split("=")[0].split(".")[0].strip() in own]
    return [text for text in assignments if text not in process], process


async def run(arguments: argparse.Namespace, run_assignments: Sequence[str], settings: TrainerSettings) -> int:
    """Check the inputs and train, unless the run is finished already; return the exit code."""
    from services.trainer.runs.run_folder import is_run_finished, verify_inputs
    from services.trainer.settings import load_run_config

    # The folder may have been moved or mounted elsewhere since its ``run.yaml`` was written.
    extra = [f"output={arguments.resume}"] if arguments.resume is not None else []
    config = load_run_config(find_run_file(arguments), [*run_assignments, *extra])
    if arguments.dry_run:
        await check(config, arguments, settings)
        return 0
    if not arguments.new and is_run_finished(config):
        logger.info("run %s is finished, at most %d steps; its folder is %s", config.name, config.steps, config.output)
        return 0
    verify_inputs(config)
    state = await train(config, arguments, settings)
    return arguments.unfinished_exit_code if state.interrupted and not state.completed else 0


async def check(config: "RunConfig", arguments: argparse.Namespace, settings: TrainerSettings) -> None:
    """Print the plan, its batches and memory, and one line per check; with ``--json`` only the checks, for programs.

    Raises:
        ConfigurationError: checks failed; all of them are named.
    """
    from searchrl.platform.findings import failures, findings_to_json
    from services.trainer.preflight.run_checks import check_run
    from services.trainer.settings import describe_plan

    logging.getLogger("searchrl.platform.retry").setLevel(logging.WARNING)  # one line per service, not one per attempt
    if not arguments.json:
        sys.stdout.write(describe_plan(config))
    findings, table = await check_run(config, settings.listen, arguments.new)
    lines = "".join(f"{finding.line}\n" for finding in findings)
    sys.stdout.write(findings_to_json(findings) if arguments.json else table + lines)
    sys.stdout.flush()
    failed = failures(findings)
    if failed:
        sentences = "; ".join(f"{finding.subject}: {finding.found}" for finding in failed)
        raise ConfigurationError(f"this run cannot start as configured: {sentences}")


async def train(config: "RunConfig", arguments: argparse.Namespace, settings: TrainerSettings) -> "RunState":
    """Train, and answer status and control calls meanwhile. Return the state in which the run ended."""
    # heavy imports wait for valid settings and inputs
    from searchrl.platform.health import Health
    from searchrl.platform.server.auth import KeyRing
    from searchrl.platform.server.serve import serve
    from services.trainer import wiring
    from services.trainer.metrics import TrainerMetrics
    from services.trainer.runs.run_lock import LOCK_SECONDS, RunLock

    if config.uses_ray:
        from services.trainer.cluster.placement import join_cluster  # Ray takes seconds to import

        join_cluster()  # before serve, whose SIGTERM handler must replace the one that Ray installs
    metrics, health, lock = TrainerMetrics(), Health(), RunLock(config.output)
    service = wiring.build_service(config, wiring.connect(config), metrics, health)
    # SIGTERM starts draining, and draining interrupts the run; ``drain`` below then waits for its checkpoint
    health.subscribe_in_loop(lambda _ready: service.stop_if(health.draining))
    keys = KeyRing.from_file(settings.auth_keys_file)
    training: list[asyncio.Task[None]] = []

    async def start() -> None:
        await lock.acquire(LOCK_SECONDS)
        training.append(asyncio.create_task(service.run(continues_run(arguments, config.output))))

    async def drain() -> None:
        # Not ``await``: what ended the run is raised below, after the servers have closed properly. Without a lock
        # nothing was started, and there is nothing to wait for.
        await asyncio.wait(training) if training else None

    spec = wiring.service_spec(service, keys, health, metrics)
    try:
        await serve(replace(spec, start=start, drain=drain), settings)
    finally:
        # The servers have removed their handlers. Until the process has exited, ``stop_run`` repeats its SIGTERM, which
        # would end a finished run by the signal instead of its exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for task in training:
        await task  # raises what ended the run
    lock.release()
    return service.status()


def main(argv: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done or stopped with a checkpoint, 1 failed, 2 cannot run as configured."""
    from searchrl.platform.server.serve import run_on_fast_loop
    from searchrl.platform.telemetry.logging_setup import set_up_logging
    from searchrl.platform.telemetry.trace_export import set_up_tracing

    try:
        arguments = parse_arguments(argv)
        run_assignments, process_assignments = split_assignments(arguments.set)
        settings = TrainerSettings.from_environment([f"--set={text}" for text in process_assignments])
        set_up_logging("trainer", settings.log_format)
        set_up_tracing("trainer", settings.traces_endpoint)
        code = run_on_fast_loop(run(arguments, run_assignments, settings))
    except ConfigurationError as error:
        write_termination_message(f"trainer: {error}")
        sys.exit(2)
    except ServiceError as error:
        logger.error("the run stopped: %s", error)
        sys.exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit waits for threads of torch and gRPC, which may delay it for long. Everything that must survive is on
    # disk by now (checkpoint, metrics, trajectories), and the two streams are flushed, which os._exit does not do.
    os._exit(code)
