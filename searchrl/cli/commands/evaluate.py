"""Command that compares answering methods on questions and writes the report."""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.live import Live

from searchrl.cli.command_parser import CommandParser, add_target_arguments, target_of
from searchrl.cli.views import run_table
from searchrl.clients.evaluator_client import EvaluatorClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.errors import ConfigurationError
from searchrl.local.instance import running_instance


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--questions", type=Path, help="file of questions (JSON or parquet); default: what 'up --questions' was given")
    add("--methods", default="direct,rag,s3", help="answering methods with commas (default direct,rag,s3)")
    add("--run-id", help="name of the run; a run of that name is resumed (default: from the time)")
    add("--limit", type=int, default=0, help="use only the first N questions; 0: all")
    add("--concurrency", type=int, default=0, help="episodes at once; 0: the evaluator's default")
    add("--top-k", type=int, help="passages per search")
    add("--temperature", type=float, help="of the searcher")
    add("--seed", type=int, help="of the searcher's sampling")
    add("--controls", action="store_true", help="also closed book, oracle and random retrieval")
    add("--retry-failures", action="store_true", help="also retry questions that were refused permanently")
    add("--allow-unscored", action="store_true", help="accept questions without golden answers")
    add("--keep-trajectories", action="store_true", help="store every answer's trajectory")
    add("--allow-changes", action="store_true", help="continue where model, index or prompt change, and report it")
    add("--report", type=Path, help="write the HTML report here")
    add("--json", action="store_true", help="the finished run as JSON instead of a table")
    add_target_arguments(parser, "evaluator")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 finished, 1 answers are missing after an outage (the same call resumes), 2 an input is unusable."""
    return asyncio.run(_evaluate(arguments))


async def _evaluate(arguments: argparse.Namespace) -> int:
    questions = _questions(arguments)
    # With --json, standard output is the JSON alone.
    console = Console(stderr=arguments.json)
    run_id = arguments.run_id or time.strftime("run-%Y%m%d-%H%M%S")
    async with EvaluatorClient(target_of(arguments, "evaluator"), key=arguments.key) as evaluator:
        latest = await evaluator.create_run(
            run_id,
            str(questions),
            _methods(arguments),
            limit=arguments.limit,
            concurrency=arguments.concurrency,
            controls=arguments.controls,
            retry_failures=arguments.retry_failures,
            allow_unscored=arguments.allow_unscored,
            keep_trajectories=arguments.keep_trajectories,
            allow_changes=arguments.allow_changes,
        )
        with Live(run_table(latest), console=console, refresh_per_second=4) as live:
            async for latest in evaluator.watch_run(run_id):
                live.update(run_table(latest))
        console.print()
        # An incomplete run has a report of what was answered.
        if latest.state in ("finished", "incomplete") and arguments.report is not None:
            arguments.report.parent.mkdir(parents=True, exist_ok=True)
            arguments.report.write_bytes(await evaluator.get_report(run_id))
            console.print(f"report: {arguments.report}", markup=False, highlight=False, soft_wrap=True)
    if arguments.json:
        sys.stdout.write(MessageToJson(latest, preserving_proto_field_name=True) + "\n")
    if latest.error:
        console.print(f"searchrl: {latest.error}", style="red", markup=False)
    if latest.state == "finished":
        return 0
    return 2 if latest.reason in ("misconfigured", "changed") else 1


def _questions(arguments: argparse.Namespace) -> Path:
    """Return the file of questions: the one named, else the one that ``up`` was given.

    With ``--evaluator`` the path is one of the evaluator's machine, so it is not checked here.

    Raises:
        ConfigurationError: no file was named, or it does not exist.
    """
    path: Path | None = arguments.questions
    if path is None and not arguments.evaluator:
        named = running_instance(arguments.folder).inputs.get("questions")
        path = Path(named) if named else None
    if path is None:
        raise ConfigurationError("name a file of questions with --questions")
    if not arguments.evaluator and not path.is_file():
        raise ConfigurationError(f"--questions: there is no file {path}")
    # The evaluator opens the file itself, and may have been started in another working directory.
    return path if arguments.evaluator else path.resolve()


def _methods(arguments: argparse.Namespace) -> list[pb.MethodSpec]:
    names = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    if not names:
        raise ConfigurationError("--methods: name at least one answering method")
    return [
        pb.MethodSpec(method=name, top_k=arguments.top_k, temperature=arguments.temperature, seed=arguments.seed)
        for name in names
    ]
