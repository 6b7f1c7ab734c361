"""Command that starts the services on this machine, in the foreground or detached."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError
from searchrl.local.instance import DEFAULT_FOLDER, acquire_lock

if TYPE_CHECKING:
    from searchrl.local.local_services import Inputs


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--folder", type=Path, default=DEFAULT_FOLDER, help=f"logs, index, results (default {DEFAULT_FOLDER})")
    add("--corpus", type=Path, help="jsonl rows of id and contents; an index is built unless there is one")
    add("--kind", choices=("bm25", "dense", "hybrid"), default="bm25", help="kind of index for --corpus")
    add("--encoder", type=Path, help="sentence-transformers folder, for dense and hybrid")
    add("--index", type=Path, help="existing index, instead of --corpus")
    add("--questions", type=Path, help="file of questions that 'searchrl evaluate' uses by default")
    add("--searcher", type=Path, help="model folder of the searcher that s3 or search_r1 runs")
    add("--searcher-url", default="", help="OpenAI-compatible server that serves the searcher with token ids")
    add("--engine", choices=("reader", "url", "vllm"), default="reader", help="language model behind the generator")
    add("--engine-url", default="", help="for --engine url: an OpenAI-compatible server")
    add("--engine-model", default="", help="for --engine url and vllm: the model")
    add("--engine-key", default="", help="for --engine url: its API key")
    add("--keys", type=Path, help="file of API keys; default: no authentication")
    add("--config", type=Path, help="YAML file: settings of each service under its name")
    add("--set", action="append", default=[], metavar="SERVICE.NAME=VALUE", help="one setting of one service")
    add("--timeout", type=float, default=120.0, help="seconds that each service may take to become ready")
    add("--detach", action="store_true", help="return when everything is ready; stop with 'searchrl down'")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 stopped on request, 1 a service failed, 2 an input is unusable."""
    from searchrl.local.bring_up import run_detached, run_in_foreground  # heavy imports wait until they are needed
    from searchrl.local.local_services import LocalServices
    from searchrl.local.service_plan import ServicePlan

    inputs = read_inputs(arguments)
    # Before anything is written, and before the process is detached: a wrong path is an error of this command.
    inputs.check()
    plan = ServicePlan.read(arguments.folder, arguments.config, arguments.set)
    if arguments.detach:
        # Not locked here: the lock belongs to the process that supervises, and would end with this one.
        return run_detached(arguments.folder, [argument for argument in sys.argv[1:] if argument != "--detach"])
    with acquire_lock(arguments.folder):
        return run_in_foreground(LocalServices(arguments.folder, inputs, plan))


def read_inputs(arguments: argparse.Namespace) -> "Inputs":
    """Read the inputs from the arguments.

    Raises:
        ConfigurationError: two arguments contradict each other, or one needs another.
    """
    from searchrl.local.index_build import IndexRequest
    from searchrl.local.local_services import Inputs
    from searchrl.local.service_plan import EngineChoice

    if arguments.corpus and arguments.index:
        raise ConfigurationError("give either --corpus or --index, not both")
    if arguments.kind != "bm25" and arguments.corpus and not arguments.encoder:
        raise ConfigurationError(f"--kind {arguments.kind} needs --encoder: a sentence-transformers folder")
    index = IndexRequest(arguments.corpus, arguments.kind, arguments.encoder) if arguments.corpus else None
    return Inputs(
        index=index,
        index_dir=arguments.index,
        questions=arguments.questions,
        engine=EngineChoice(arguments.engine, arguments.engine_url, arguments.engine_model, arguments.engine_key),
        searcher=arguments.searcher,
        searcher_url=arguments.searcher_url,
        keys_file=arguments.keys,
        ready_seconds=arguments.timeout,
    )
