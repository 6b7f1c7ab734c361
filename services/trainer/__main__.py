"""Train a searcher: ``python -m services.trainer --config run.yaml [--resume DIR] [--set NAME=VALUE] [--dry-run]``."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.nearest_name import unknown_name
from services.trainer.settings import TrainerSettings

logger = logging.getLogger(__name__)

FLAGS = ("--config", "--resume", "--set", "--dry-run", "--help")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises:
    ConfigurationError: a flag that does not exist; the message names the nearest one.
    """
    parser = argparse.ArgumentParser(prog="python -m services.trainer", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file of the run; may name a preset")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="run folder to continue, with its own run.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(unknown_name("flag", unknown[0], FLAGS))
    return arguments


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the run, and those of the process (``listen.http_port=0`` and the like)."""
    own = set(TrainerSettings.model_fields)
    process = [text for text in assignments if text.split("=")[0].split(".")[0].strip() in own]
    return [text for text in assignments if text not in process], process


def run_file(arguments: argparse.Namespace) -> Path | None:
    """The file that describes the run: the one named, or that of the run to resume.

    Raises:
        ConfigurationError: there is no run to resume.
    """
    if arguments.resume is None or arguments.config is not None:
        return arguments.config
    path: Path = arguments.resume / "run.yaml"
    if not path.is_file():
        raise ConfigurationError(f"--resume: {arguments.resume} holds no run: it has no run.yaml")
    return path


async def serve(arguments: argparse.Namespace, run_assignments: Sequence[str], settings: TrainerSettings) -> None:
    """Train, and answer status and control calls meanwhile."""
    from searchrl.platform.auth import KeyRing  # heavy imports wait for valid settings
    from searchrl.platform.health import Health
    from searchrl.platform.server_runner import run_servers
    from services.trainer import wiring
    from services.trainer.metrics import TrainerMetrics
    from services.trainer.run_config import load_run_config
    from services.trainer.run_plan import run_plan

    resume = arguments.resume is not None
    extra = [f"output={arguments.resume}"] if resume else []
    config = load_run_config(run_file(arguments), [*run_assignments, *extra])
    if arguments.dry_run:
        wiring.check_inputs(config)
        sys.stdout.write(run_plan(config))
        return
    metrics, health = TrainerMetrics(), Health()
    service = wiring.build_service(config, wiring.connect(config), metrics)
    health.subscribe(lambda _ready: service.stop_if(health.draining))
    keys = KeyRing.from_file(settings.auth_keys_file)
    training: list[asyncio.Task[None]] = []

    async def start() -> None:
        training.append(asyncio.create_task(service.run(resume)))

    async def drain() -> None:
        await asyncio.wait(training) if training else None

    await run_servers(
        wiring.build_grpc_server(service, keys, health, metrics),
        wiring.build_http_app(service, keys, health, metrics),
        settings=settings,
        health=health,
        start=start,
        drain=drain,
        stop=service.ended,
    )
    for task in training:
        await task


def main(argv: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done or stopped with a checkpoint, 1 failed, 2 cannot run as configured."""
    from searchrl.platform.logging_setup import set_up_logging

    try:
        arguments = parse_arguments(argv)
        run_assignments, process_assignments = split_assignments(arguments.set)
        settings = TrainerSettings.from_environment([f"--set={text}" for text in process_assignments])
        set_up_logging("trainer", settings.log_format)
        asyncio.run(serve(arguments, run_assignments, settings))
    except ConfigurationError as error:
        sys.stderr.write(f"trainer: {error}\n")
        sys.exit(2)
    except ServiceError as error:
        logger.error("the run stopped: %s", error)
        sys.exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch and grpc threads may not delay the end of a job whose state is on disk


if __name__ == "__main__":
    main()
