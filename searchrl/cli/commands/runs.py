"""Command that lists, follows, stops and resumes the jobs in a cluster, and explains how a run goes."""

import argparse
import dataclasses
import json
import sys
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from searchrl.cli.command_parser import CommandParser, run_module
from searchrl.cli.commands.submit import follow
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.jobs.cluster import Cluster
from searchrl.jobs.run_view import (
    DELETING,
    DONE,
    FAILED,
    VALIDATION_MESSAGE,
    RunView,
    find_last_message,
    pod_lines,
)

# A step logs a few lines, so this reaches over hundreds of steps; a complete log may take minutes to transfer.
LOG_TAIL = 5000
ACTIONS = ("list", "status", "logs", "stop", "resume", "explain")
EXPLAIN_MODULE = "services.trainer.runs.explain_run"


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("action", choices=ACTIONS, help="what to do")
    add("run_id", nargs="?", default="", metavar="RUN", help="the run, or its folder for explain; list needs none")
    add("--step", default="", help="only this step, e.g. train")
    add("-n", "--namespace", default="", help="default: the kubeconfig's")
    add("--context", default="", help="context of the kubeconfig")
    add("--delete", action="store_true", help="stop: delete the job, but keep its files")
    add("--no-follow", action="store_true", help="logs: print the existing lines only")
    add("--engine", type=int, metavar="N", help="logs: of this engine of the run, from 0")
    add("--json", action="store_true", help="list, status: machine-readable")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 done, 1 the run failed, 2 wrong usage or an unknown run."""
    if arguments.action != "list" and not arguments.run_id:
        raise ConfigurationError(f"name the run: searchrl runs {arguments.action} RUN; see 'searchrl runs list'")
    if arguments.action == "explain":  # reads the folder of the run, which needs no cluster
        return run_module(EXPLAIN_MODULE, (arguments.run_id,))
    cluster = Cluster.connect(arguments.context, arguments.namespace)
    if arguments.action == "list":
        return _list(cluster, arguments)
    job = cluster.newest(arguments.run_id, arguments.step)
    if arguments.action == "status":
        return _status(cluster, job, arguments.json)
    if arguments.action == "logs":
        return _logs(cluster, job, arguments.engine, wait=not arguments.no_follow)
    return _control(cluster, job, arguments)


def _list(cluster: Cluster, arguments: argparse.Namespace) -> int:
    jobs = cluster.runs(arguments.run_id, arguments.step)
    if arguments.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(job) for job in jobs], indent=1) + "\n")
        return 0
    console = Console()
    console.print(runs_table(jobs, datetime.now(UTC)) if jobs else f"no jobs in namespace {cluster.namespace}")
    return 0


def runs_table(jobs: list[RunView], now: datetime) -> Table:
    """Build the table, one row per job in the given order."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "step", "state", "age", "failures", "job"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("age", "failures") else "left")
    for job in jobs:
        name = job.name if job.kind == "Job" else f"{job.name} ({job.kind})"
        table.add_row(job.run_id, job.step, job.state, age_text(job.created, now), str(job.failures or ""), name)
    return table


def age_text(created: str, now: datetime) -> str:
    """Format the age of an ISO 8601 time: ``20s``, ``3m``, ``5h`` or ``2d``."""
    if not created:
        return ""
    seconds = (now - datetime.fromisoformat(created)).total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def _status(cluster: Cluster, job: RunView, as_json: bool) -> int:
    pods, events = pod_lines(cluster.pods(job)), cluster.events(job)
    validation = _last_validation(cluster, job)
    if as_json:
        found = {**dataclasses.asdict(job), "validation": validation, "pods": pods, "events": events}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        # The last five events show the cause of a pod that does not start; all of them would fill the screen.
        lines = [f"{job.kind} {job.name}: {job.state}", job.message, validation, *pods, *events[-5:]]
        sys.stdout.write("\n  ".join(line for line in lines if line) + "\n")
    return 1 if job.state == FAILED else 0


def _last_validation(cluster: Cluster, job: RunView) -> str:
    """Return what a training run logged after its last validation; empty if it was not validated, or has no log."""
    if job.step != "train":
        return ""
    try:
        return find_last_message(cluster.follow(job, follow=False, tail=LOG_TAIL), VALIDATION_MESSAGE)
    except ServiceError:  # pods that are starting or gone have no log, and their state is shown all the same
        return ""


def _logs(cluster: Cluster, job: RunView, engine: int | None, *, wait: bool) -> int:
    if engine is not None and not job.engines:
        raise ConfigurationError(f"{job.name} has no engines: it samples in its own pod")
    if wait:
        return follow(cluster, job, engine)
    for line in cluster.follow(job, follow=False, engine=engine):
        sys.stdout.write(line + "\n")
    return 0


def _control(cluster: Cluster, job: RunView, arguments: argparse.Namespace) -> int:
    if arguments.action == "resume":
        if job.state == DONE:
            raise ConfigurationError(f"{job.name} is done; submit the run again to train it further")
        if job.state == DELETING:
            raise ConfigurationError(f"{job.name} is being deleted; submit the run again when its pods have ended")
        cluster.resume(job)
        word = "resumed"
    elif arguments.delete:
        cluster.delete(job)
        word = "deleted; its files stay, and the same run can be submitted again"
    elif job.is_over:
        word = f"has already ended: {job.state}"
    else:
        word = cluster.stop(job)
        word += (
            f"; resume it with: searchrl runs resume {job.run_id}"
            if word == "stopped"
            else "; submit it again to continue"
        )
    Console().print(f"{job.kind} {job.name} {word}", highlight=False, soft_wrap=True)
    return 0
