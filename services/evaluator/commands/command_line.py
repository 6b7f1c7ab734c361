"""Provides what the evaluator's commands share: connections, progress lines, signals and exit codes."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.clients.service_client import read_key
from searchrl.errors import PERMANENT_KINDS, ConfigurationError, ServiceError
from searchrl.platform.processes import SIGTERM_EXIT, write_termination_message
from searchrl.platform.retry import PATIENT
from searchrl.platform.telemetry.logging_setup import set_up_logging
from services.evaluator import wiring
from services.evaluator.baselines.s3_files import StoredContext
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.runs.run_executor import RemotePassages, RunSettings
from services.evaluator.runs.run_progress import RunResults
from services.evaluator.settings import EvaluatorSettings, Target
from services.evaluator.store.run_store import RunStore

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0  # of progress; at most 720 lines per hour


def add_connections(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags that name the other services."""
    parser.add_argument(
        "--generator", required=required, default="", metavar="HOST:PORT", help="the generator's gRPC server"
    )
    parser.add_argument(
        "--retriever",
        default="",
        metavar="HOST:PORT",
        help="the retriever's gRPC server, for the index generation and the controls",
    )
    parser.add_argument("--key-file", type=Path, help="file that holds the API key")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="time one answer may take")
    parser.add_argument("--concurrency", type=int, default=8, help="questions at once")


@contextlib.asynccontextmanager
async def open_service(
    arguments: argparse.Namespace, store: Path, contexts: Sequence[StoredContext] = ()
) -> AsyncIterator[tuple[EvaluationService, RunStore]]:
    """The evaluation service inside this process, with the results in ``store``.

    Raises:
        ConfigurationError: the store or the key file cannot be used.
    """
    key = read_key(arguments.key_file)
    settings = EvaluatorSettings(
        store=store,
        questions_dir=Path("/"),  # the user of a command may name any file that they can read
        generator=Target.model_validate(
            {"target": arguments.generator, "key": key, "timeout_seconds": arguments.timeout}
        ),
        retriever=Target.model_validate({"target": arguments.retriever, "key": key}),
        # The limit of 64 protects a service from its callers; the user of a command chooses the load.
        runs=RunSettings(default_concurrency=arguments.concurrency, max_concurrency=max(64, arguments.concurrency)),
    )
    parts = wiring.build_parts(settings, EvaluatorMetrics(CollectorRegistry()), contexts)
    try:
        yield parts.service, parts.store
    finally:
        await parts.service.stop()
        await parts.close_clients()


async def wait_for_services(arguments: argparse.Namespace) -> None:
    """Return once the generator and the retriever answer; the first step of a job may start before they do.

    Raises:
        ServiceError: one refuses, or does not answer within ``--timeout``.
    """
    key, seconds = read_key(arguments.key_file), arguments.timeout
    async with GeneratorClient(arguments.generator, key=key, timeout_seconds=seconds, retries=PATIENT) as generator:
        await _wait_for_answer(generator.list_methods(), arguments.generator)
    if arguments.retriever:
        async with RetrieverClient(arguments.retriever, key=key, timeout_seconds=seconds, retries=PATIENT) as retriever:
            await _wait_for_answer(RemotePassages(retriever).index_generation(), arguments.retriever)


async def _wait_for_answer(call: Coroutine[object, object, object], target: str) -> None:
    """Wait for an answer, and log regularly that it is still missing."""
    asked = asyncio.create_task(call)
    # ``wait`` leaves the task running at a timeout, where ``wait_for`` would cancel it.
    while not (await asyncio.wait({asked}, timeout=SECONDS_BETWEEN_LINES))[0]:
        logger.info("waiting for %s to answer", target)
    asked.result()


async def follow(service: EvaluationService, run_id: str) -> RunResults:
    """Wait for the run's end and log its progress."""
    ended = asyncio.create_task(service.wait_for_run(run_id))
    while not (await asyncio.wait({ended}, timeout=SECONDS_BETWEEN_LINES))[0]:
        results = await service.get_run(run_id)
        done = sum(column.total - column.pending for column in results.columns)
        logger.info("%s: %d of %d", run_id, done, sum(column.total for column in results.columns))
    return ended.result()


def run_command(name: str, command: Callable[[], Awaitable[int]]) -> None:
    """Run a command; an expected failure becomes one sentence on stderr.

    Exit codes: 2 if the same call would fail again, 1 after another failure, 143 or 130 if SIGTERM or Ctrl-C ended it;
    the same call continues it.
    """
    set_up_logging(name, "text")
    try:
        code = asyncio.run(_cancel_on_sigterm(command))
    except ConfigurationError as error:
        write_termination_message(f"{name}: {error}")
        sys.exit(2)
    except ServiceError as error:
        write_termination_message(f"{name}: {error}")
        sys.exit(2 if error.kind in PERMANENT_KINDS else 1)  # permanent: a retry would be refused, too
    except (KeyboardInterrupt, asyncio.CancelledError) as stop:
        sys.stderr.write(f"{name}: interrupted; run it again to continue\n")
        sys.exit(130 if isinstance(stop, KeyboardInterrupt) else SIGTERM_EXIT)
    sys.exit(code)


async def _cancel_on_sigterm(command: Callable[[], Awaitable[int]]) -> int:
    """The command, which SIGTERM cancels, so that results in flight are written and connections closed."""
    task = asyncio.ensure_future(command())
    # Replaces the handler of ``exit_on_sigterm``, whose exception would be raised at any point of the event loop.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task
