"""Command that asks a running system one question and shows the steps."""

import argparse
import asyncio
import sys

from google.protobuf.json_format import MessageToJson
from rich.console import Console

from searchrl.cli.command_parser import CommandParser, add_target_arguments, target_of
from searchrl.cli.views import AnswerView
from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, unknown_name

# Without --method the first one that is served: searching agents before plain retrieval and no retrieval.
PREFERRED_METHODS = ("s3", "search_r1", "rag", "direct")


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("question", help="the question, in quotes")
    parser.add_argument("--method", help=f"answering method; the first served of {', '.join(PREFERRED_METHODS)}")
    parser.add_argument("--top-k", type=int, help="passages per search")
    parser.add_argument("--max-searches", type=int, help="searches the searcher may make")
    parser.add_argument("--temperature", type=float, help="of the searcher; 0 is greedy")
    parser.add_argument("--seed", type=int, help="of the searcher's sampling")
    parser.add_argument("--filter", action="append", default=[], metavar="NAME=VALUE", help="metadata of all results")
    parser.add_argument("--json", action="store_true", help="one JSON object per step instead of text")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the answer")
    add_target_arguments(parser, "generator")


def run(arguments: argparse.Namespace) -> int:
    asyncio.run(_ask(arguments, _filters(arguments.filter)))
    return 0


async def _ask(arguments: argparse.Namespace, filters: dict[str, str]) -> None:
    target = target_of(arguments, "generator")
    view = AnswerView(Console())
    async with GeneratorClient(target, key=arguments.key, timeout_seconds=arguments.timeout) as generator:
        method = _choose(arguments.method, await generator.list_methods())
        events = generator.answer(
            Question("ask", arguments.question, filters=filters),
            method,
            top_k=arguments.top_k,
            max_searches=arguments.max_searches,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
        async for event in events:
            if arguments.json:
                text = MessageToJson(event, preserving_proto_field_name=True, indent=None)
                sys.stdout.write(text + "\n")
                # Output to a pipe is buffered in blocks; a program that reads the steps should get each one when it
                # happens.
                sys.stdout.flush()
            else:
                view.show(event)


def _choose(wanted: str | None, served: list[str]) -> str:
    if wanted is None:
        return next((method for method in PREFERRED_METHODS if method in served), served[0] if served else "direct")
    if wanted not in served:
        raise ConfigurationError(unknown_name("method", wanted, served))
    return wanted


def _filters(texts: list[str]) -> dict[str, str]:
    filters: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--filter takes NAME=VALUE, got '{text}'")
        filters[name] = value
    return filters
