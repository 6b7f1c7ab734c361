"""Carries out ``searchrl up``: in the foreground with a live display, or by a detached supervisor process."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from searchrl.errors import ConfigurationError
from searchrl.local.instance import Instance
from searchrl.local.local_services import LocalServices
from searchrl.local.service_table import call_lines, service_table
from searchrl.local.supervisor import ServiceFailed

POLL_SECONDS = 0.2  # between looks at the record of a detached supervisor, which takes seconds to start
SIGINT_EXIT = 130  # 128 + SIGINT, as a shell reports it


def run_in_foreground(services: LocalServices) -> int:
    """Start everything, show it, and wait for SIGINT or SIGTERM.

    Exit codes: 0 stopped after it was ready, 1 a service failed, 130 interrupted before it was ready.
    """
    console = Console()
    stopping = threading.Event()
    with _signals(stopping):
        try:
            _start(services, console)
            _show_ready(console, Instance.read(services.folder))
            stopping.wait()
        except _StopRequested:
            return SIGINT_EXIT if not services.is_ready else 0
        except (ServiceFailed, TimeoutError) as error:
            console.print(f"searchrl: {error}", style="red", markup=False, highlight=False)
            return 1
        finally:
            stopping.set()  # from here on, signals are ignored
            with console.status("stopping the services"):
                services.close()
    return 0


class _StopRequested(BaseException):
    """SIGINT or SIGTERM arrived. A BaseException like KeyboardInterrupt: no ``except Exception`` catches it."""


@contextlib.contextmanager
def _signals(stopping: threading.Event) -> Iterator[None]:
    """The first signal interrupts what is running; further ones are ignored, so that they cannot interrupt the stop.

    Python runs the handler in the main thread, between two bytecodes, so it may raise from any line of the block.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        # Only the first signal raises; a second Ctrl-C would otherwise interrupt ``close`` and leave services running.
        if not stopping.is_set():
            stopping.set()
            raise _StopRequested

    # SIGHUP arrives when the terminal is closed; its default action would end this process without stopping the
    # services in order.
    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _start(services: LocalServices, console: Console) -> None:
    spinner = Spinner("dots")

    def render() -> RenderableType:
        spinner.text = services.phase
        return Group(spinner, service_table(services.records()))

    # In a log file every frame of the display would be printed below the last one.
    if not console.is_terminal:
        services.start()
        return
    with Live(get_renderable=render, console=console, refresh_per_second=8, transient=True):
        services.start()


def _show_ready(console: Console, instance: Instance | None) -> None:
    if instance is None:
        return
    console.print(service_table(instance.services, "everything is ready"))
    console.print()
    for line in call_lines(instance.services, has_keys="keys" in instance.inputs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    evaluator = instance.services.get("evaluator")
    if evaluator is not None and evaluator.http:
        console.print(f"\nreports: http://{evaluator.http}/", highlight=False)
    console.print(f"logs:    {instance.folder}/logs", markup=False, highlight=False, soft_wrap=True)


def run_detached(folder: Path, argv: Sequence[str]) -> int:
    """Start the same command as a detached supervisor process, and wait until it is ready.

    Returns:
        0 once it is ready, else the exit code of the supervisor, whose last log line, if any, is printed.
    """
    console = Console()
    instance = Instance.read(folder)
    if instance is not None and instance.is_alive:
        raise ConfigurationError(f"services are running in {folder} already; stop them with 'searchrl down'")
    log_file = folder / "logs" / "supervisor.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "searchrl.cli.main", *argv],
            # Nothing of this terminal stays in use, and the session is new: closing the terminal does not end the
            # supervisor.
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with console.status("starting the services"):
        while supervisor.poll() is None:
            instance = Instance.read(folder)
            # The record may still be the one of an earlier run in this folder, so the process id is compared.
            if instance is not None and instance.supervisor_pid == supervisor.pid and instance.state == "ready":
                _show_ready(console, instance)
                console.print(f"\nstop with: searchrl down --folder {folder}", markup=False, highlight=False)
                return 0
            time.sleep(POLL_SECONDS)
    # The supervisor ended before it was ready. Its last line is the sentence that ``up`` prints about an error; the log
    # of a killed one may be empty.
    lines = log_file.read_text(errors="replace").strip().splitlines()
    ending = f"searchrl: the supervisor ended with exit code {supervisor.returncode} and an empty log, {log_file}"
    sys.stderr.write((lines[-1] if lines else ending) + "\n")
    return supervisor.returncode
