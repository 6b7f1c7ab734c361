"""Evaluates without a running service: ``python -m services.evaluator.commands.evaluate``.

The same call continues an interrupted run.
"""

import argparse
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from searchrl.datasets.question_file import questions_sha256
from searchrl.errors import ConfigurationError
from searchrl.platform.processes import exit_on_sigterm
from searchrl.storage.artifact_manifest import Artifact, verify_input, write_artifact
from searchrl.storage.durable_files import atomic_write
from services.evaluator.baselines.s3_files import import_output_sequences
from services.evaluator.baselines.stored_contexts import STORED_CONTEXT, export_contexts
from services.evaluator.commands.command_line import (
    add_connections,
    follow,
    open_service,
    run_command,
    wait_for_services,
)
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, MethodSpec, RunSpec
from services.evaluator.reports.report_columns import list_columns
from services.evaluator.reports.report_writer import ReportRequest, write_report

logger = logging.getLogger(__name__)

_INVALID_IN_AN_ID = re.compile(r"[^A-Za-z0-9_-]+")
INPUTS_FILE = "inputs.json"
METHOD_SETTINGS = {"label": str, "temperature": float, "top_k": int, "max_searches": int, "seed": int}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate", description="Answer a question file with several methods.")
    parser.add_argument("--questions", required=True, type=Path, help="file of questions (JSON, CSV or parquet)")
    parser.add_argument("--methods", default="", help="comma-separated answering methods, e.g. direct,rag,s3")
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help=f"a method with settings ({', '.join(METHOD_SETTINGS)}); may be repeated",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for results, report.html and report.json")
    parser.add_argument(
        "--run-id", default="", help="default: derived from the settings, so that the same call continues the run"
    )
    parser.add_argument("--limit", type=int, default=0, help="first N questions; 0: all")
    parser.add_argument("--controls", action="store_true", help="add closed book, oracle documents, random retriever")
    parser.add_argument("--allow-unscored", action="store_true", help="accept questions without golden answers")
    parser.add_argument("--keep-trajectories", action="store_true", help="store the complete trajectories")
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="continue if the model, the index or the prompt changes during the run, and report it",
    )
    parser.add_argument(
        "--contexts",
        type=Path,
        help="s3's *_output_sequences.json: adds the method stored_context, which answers from the stored contexts",
    )
    parser.add_argument(
        "--export-contexts",
        default="",
        metavar="LABEL=FILE",
        help="write the contexts that LABEL gave to the generator in s3's format",
    )
    parser.add_argument("--title", default="", help="title of the report")
    parser.add_argument(
        "--of",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="folder of what is evaluated, such as the searcher: it is verified, and the output accepts no other",
    )
    parser.add_argument("--no-report", action="store_true", help="store the results without a report")
    add_connections(parser)
    return parser.parse_args(argv)


def parse_method(text: str) -> MethodSpec:
    """``s3:label=s3 (sampled),temperature=1`` as a method.

    Raises:
        ConfigurationError: an unknown setting, or a value of the wrong kind.
    """
    name, _, settings = text.partition(":")
    values: dict[str, str | int | float] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        kind = METHOD_SETTINGS.get(key.strip())
        if kind is None or not equals:
            raise ConfigurationError(f"--method {text}: settings are {', '.join(METHOD_SETTINGS)}, written key=value")
        try:
            values[key.strip()] = kind(value.strip())
        except ValueError as error:
            raise ConfigurationError(f"--method {text}: {key} must be a number, got {value!r}") from error
    return MethodSpec(name.strip(), **values)  # pyright: ignore[reportArgumentType] - kinds come from the table


def make_run_spec(arguments: argparse.Namespace) -> RunSpec:
    """The run that the arguments describe.

    Raises:
        ConfigurationError: no method is named, or one cannot be read.
        NotFound: there is no such question file.
    """
    methods = [MethodSpec(name.strip()) for name in arguments.methods.split(",") if name.strip()]
    methods += [parse_method(text) for text in arguments.method]
    if arguments.contexts and not any(method.method == STORED_CONTEXT for method in methods):
        methods.append(MethodSpec(STORED_CONTEXT))
    if not methods:
        raise ConfigurationError("name the answering methods with --methods or --method")
    # The settings that decide what the rows mean; the same call finds its run again. Concurrency and the flags of the
    # report are not among them, so that they may change between two calls. The checksum is: a changed file starts
    # another run.
    settings = [
        str(arguments.questions.resolve()),
        questions_sha256(arguments.questions),
        arguments.limit,
        arguments.controls,
        arguments.allow_unscored,
        arguments.keep_trajectories,
        [str(method) for method in methods],
    ]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    # A run id has at most 200 characters; 100 + 1 + 10 leave room.
    stem = _INVALID_IN_AN_ID.sub("-", arguments.questions.name.partition(".")[0])[:100]
    return RunSpec(
        run_id=arguments.run_id or f"{stem}-{digest[:10]}",
        questions=str(arguments.questions.resolve()),
        methods=tuple(methods),
        limit=arguments.limit,
        concurrency=arguments.concurrency,
        controls=arguments.controls,
        allow_unscored=arguments.allow_unscored,
        keep_trajectories=arguments.keep_trajectories,
        allow_changes=arguments.allow_changes,
    )


def name_inputs(paths: Sequence[Path]) -> dict[str, Path]:
    """Name inputs by as few last parts of their paths as are distinct: ``model``, or ``a/model`` and ``b/model``."""
    # Absolute, because "." has no name. Links are not followed: the name must not change with a link's target.
    distinct = {Path(os.path.abspath(path)): path for path in paths}
    named: dict[str, Path] = {}
    for absolute, path in distinct.items():
        count = 1
        while sum(other.parts[-count:] == absolute.parts[-count:] for other in distinct) > 1:
            count += 1
        named[Path(*absolute.parts[-count:]).as_posix()] = path
    return named


def claim_output(arguments: argparse.Namespace) -> dict[str, str]:
    """Verify the inputs and record them in the output folder; return their checksums.

    Raises:
        ConfigurationError: an input is damaged, or the folder holds results of other inputs.
    """
    paths = name_inputs([arguments.questions, *arguments.of])
    inputs = {name: verify_input(path) for name, path in paths.items()}
    path = arguments.output / INPUTS_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
        if differing:
            raise ConfigurationError(
                f"{arguments.output} holds results of another {', '.join(differing)}: choose another output and run id"
            )
        return inputs
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(inputs, indent=1))
    return inputs


async def evaluate(arguments: argparse.Namespace) -> int:
    """Run, or continue, and report; return 0 if a retry could add nothing, 1 after an outage.

    Raises:
        ConfigurationError: the run cannot be finished as it is configured.
    """
    spec = make_run_spec(arguments)
    # Before anything is run: the results of two searchers must not be joined in one folder.
    inputs = claim_output(arguments)
    contexts = import_output_sequences(arguments.contexts) if arguments.contexts else []
    await wait_for_services(arguments)
    async with open_service(arguments, arguments.output / "results.sqlite", contexts) as (service, store):
        # The user who repeats the call has usually removed the cause of the refusals.
        await service.create_run(spec, retry_failures=True)
        results = await follow(service, spec.run_id)
        for column in results.columns:
            accuracy = column.estimates.get("accuracy")
            shown = f"{100 * accuracy.mean:.1f} %" if accuracy else "not scored"
            applicable = column.total - column.not_applicable
            logger.info("%s: accuracy %s, %d of %d answered", column.label, shown, column.done, applicable)
        if arguments.export_contexts:
            label, _, path = arguments.export_contexts.partition("=")
            export_contexts(store, spec.run_id, label, Path(path))
        # Also for an incomplete or failed run: the rows so far are valid, and the report shows what is missing.
        if not arguments.no_report:
            title = arguments.title or f"Evaluation {spec.run_id}"
            write_report(store, ReportRequest(list_columns(store, spec.run_id), title=title), arguments.output)
            logger.info("report: %s", arguments.output / "report.html")
            names = [name for name in ("report.html", "report.json") if (arguments.output / name).is_file()]
            write_artifact(arguments.output, Artifact("evaluation", inputs=inputs), names)
        record = results.record
        if record.state is EvaluationState.FINISHED:
            return 0
        if record.reason is EndReason.OUTAGE:
            logger.error("%s", record.error)
            return 1
        raise ConfigurationError(record.error)


def main() -> None:
    arguments = parse_arguments()
    run_command("evaluate", lambda: evaluate(arguments))


if __name__ == "__main__":
    exit_on_sigterm()  # until the event loop takes over
    main()
