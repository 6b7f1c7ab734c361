"""Runs a function in a process of its own, with a time limit, and returns its finding however it ends."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

# A forked child need not import torch and transformers again, which takes longer than many checks. CUDA does not
# survive a fork, and some packages ask for it while they are imported, so beside a GPU each process starts anew.
StartMethod = Literal["fork", "spawn"]


@dataclass(frozen=True, slots=True)
class Table:
    """Measured rows, for docs/performance.md."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: one line, whether it passed, and what it measured."""

    passed: bool
    text: str
    tables: Sequence[Table] = field(default_factory=tuple)


def run_isolated(function: Callable[[], Finding], start: StartMethod, seconds: float, log: Path) -> Finding:
    """Run ``function`` in a process that is killed after ``seconds``; its output goes to ``log``."""
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process: BaseProcess = context.Process(target=_run, args=(function, sender, log))  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    sender.close()  # so that the end of the child ends the pipe
    try:
        if receiver.poll(seconds):
            return receiver.recv()
    except EOFError:
        process.join()
        return Finding(False, f"the process {_describe_end(process.exitcode or 0)}")
    finally:
        process.kill()
        process.join()
        receiver.close()
    return Finding(False, f"not finished after {seconds:.0f} s")


def _run(function: Callable[[], Finding], sender: Connection, log: Path) -> None:
    file = log.open("a", buffering=1)  # until the process ends
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    sys.stdout = sys.stderr = file
    try:
        finding = function()
    except Exception as error:  # noqa: BLE001 - a failed check must not end the others
        traceback.print_exc()
        finding = Finding(False, f"{type(error).__name__}: {error}".splitlines()[0])
    sender.send(finding)


def _describe_end(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
