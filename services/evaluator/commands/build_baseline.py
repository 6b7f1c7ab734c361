"""Builds the naive-RAG baseline file for training: ``python -m services.evaluator.commands.build_baseline``."""

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from searchrl.clients.service_client import read_key
from searchrl.datasets.question_file import questions_sha256, read_questions
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.processes import exit_on_sigterm
from searchrl.rewards.baseline_cache import BaselineCache, BaselineVersion
from searchrl.storage.artifact_manifest import Artifact, verify_input, write_artifact
from searchrl.storage.durable_files import content_key
from services.evaluator import wiring
from services.evaluator.baselines.baseline_builder import build_baselines, make_baseline_spec, make_version
from services.evaluator.baselines.s3_files import export_rag_cache, import_rag_cache
from services.evaluator.commands.command_line import (
    add_connections,
    open_service,
    run_command,
    wait_for_services,
)
from services.evaluator.records.evaluation_run import NAIVE_RAG, MethodSpec
from services.evaluator.runs.episode_runner import RemoteGenerator
from services.evaluator.settings import Target

logger = logging.getLogger(__name__)

# Any question does: only the provenance of its answer is read.
PROBE_QUESTION = "Which model answers?"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="build-baseline",
        description="Answer every training question with naive RAG, judge it, and write the file.",
    )
    parser.add_argument("--questions", required=True, type=Path, help="file of training questions")
    parser.add_argument("--output", required=True, type=Path, help="baseline file to write")
    parser.add_argument("--top-k", type=int, default=3, help="passages that naive RAG gives to the generator")
    parser.add_argument(
        "--import-s3",
        type=Path,
        metavar="RAG_CACHE",
        help="convert s3's rag_cache.json instead of asking the generator",
    )
    parser.add_argument("--export-s3", type=Path, metavar="RAG_CACHE", help="also write s3's rag_cache.json")
    parser.add_argument(
        "--if-missing", action="store_true", help="keep an existing file of the same questions, index, top-k and model"
    )
    parser.add_argument(
        "--manifest", action="store_true", help="also write manifest.json; the file needs a folder of its own"
    )
    add_connections(parser, required=False)
    arguments = parser.parse_args(argv)
    if not arguments.generator and arguments.import_s3 is None:
        parser.error("name the --generator, or a file with --import-s3")
    return arguments


async def build(arguments: argparse.Namespace) -> int:
    """Write the baseline file; return 1 if an import lacks some of the questions, else 0."""
    verify_input(arguments.questions)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.import_s3:
        cache, absent = await _import_s3(arguments)
    else:
        await wait_for_services(arguments)
        wanted, absent = await _probe_version(arguments), []
        # One call decides whether thousands are needed.
        if arguments.if_missing and _is_current(arguments.output, wanted):
            logger.info("%s matches the questions, the index and the model: nothing to build", arguments.output)
            return 0
        cache = await _build_cache(arguments, wanted)
    cache.save(arguments.output)
    if arguments.manifest:
        _write_manifest(arguments.output, cache.version)
    if arguments.export_s3 is not None:
        export_rag_cache(cache, arguments.export_s3)
    right = sum(baseline.correct for _, baseline in cache.items())
    logger.info("%s: naive RAG answers %d of %d questions correctly", arguments.output, right, len(cache))
    if absent:
        logger.error("%d questions are not in %s, the first is %s", len(absent), arguments.import_s3, absent[0])
    return 1 if absent else 0


async def _import_s3(arguments: argparse.Namespace) -> tuple[BaselineCache, list[str]]:
    questions = read_questions(arguments.questions)
    return import_rag_cache(arguments.import_s3, questions.questions)


async def _probe_version(arguments: argparse.Namespace) -> BaselineVersion:
    """The version that the file must have, as far as one answer of naive RAG shows it; the judge's is not known."""
    key = read_key(arguments.key_file)
    client = wiring.build_generator_client(Target.model_validate({"target": arguments.generator, "key": key}))
    async with client:
        probe = await RemoteGenerator(client).answer(
            Question("probe", PROBE_QUESTION), MethodSpec(NAIVE_RAG, top_k=arguments.top_k)
        )
    return make_version(questions_sha256(arguments.questions), probe.provenance, arguments.top_k)


def _is_current(path: Path, wanted: BaselineVersion) -> bool:
    try:
        verify_input(path)
        have = BaselineCache.load(path).version
    except (ConfigurationError, ServiceError):
        return False
    # An answer does not show which judge would decide on it, so a file is kept even if the judge has changed.
    return replace(have, judge_version="") == wanted


def _write_manifest(path: Path, version: BaselineVersion) -> None:
    facts = {name: value for name, value in asdict(version).items() if value}
    artifact = Artifact("baseline", content_key(facts), inputs={"questions": version.questions_sha256}, metadata=facts)
    write_artifact(path.parent, artifact, [path.name])


async def _build_cache(arguments: argparse.Namespace, wanted: BaselineVersion) -> BaselineCache:
    """Build the baselines; the results are stored beside the file, so that an interrupted build continues."""
    store_path = arguments.output.with_name(arguments.output.name + ".sqlite")
    # The id holds everything that must be equal in all rows: after a change of model or index another run starts,
    # instead of one that ``ProvenanceGuard`` would end.
    settings = f"{arguments.questions.resolve()} {wanted}"
    run_id = "baseline-" + hashlib.sha256(settings.encode()).hexdigest()[:10]
    spec = make_baseline_spec(arguments.questions.resolve(), arguments.top_k, run_id, concurrency=arguments.concurrency)
    async with open_service(arguments, store_path) as (service, store):
        return await build_baselines(service, store, spec)


def main() -> None:
    arguments = parse_arguments()
    run_command("build-baseline", lambda: build(arguments))


if __name__ == "__main__":
    exit_on_sigterm()  # until the event loop takes over
    main()
