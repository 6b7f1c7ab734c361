"""Command that leaves training questions out of a file, as s3's data steps do."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("questions", type=Path, help="training questions: JSON lines, a JSON array, CSV or parquet")
    add("--output", type=Path, required=True, metavar="FILE", help="where the others are written, as JSON lines")
    add("--drop-yes-no", action="store_true", help="leave out questions with a golden answer yes, no, true or false")
    add("--drop-answered", type=Path, metavar="BASELINE", help="leave out questions that naive RAG answers")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 written, 2 a file cannot be used, or nothing would be left."""
    # Imported when it runs, so that --help does not load the readers of the formats.
    from searchrl.datasets.question_file import read_training_questions
    from searchrl.datasets.question_filter import Selection, has_yes_no_answer, question_lines, select
    from searchrl.rewards.baseline_cache import BaselineCache
    from searchrl.storage.durable_files import atomic_write

    if not (arguments.drop_yes_no or arguments.drop_answered):
        raise ConfigurationError("say what to leave out: --drop-yes-no, --drop-answered BASELINE")
    if arguments.output.exists() and arguments.output.samefile(arguments.questions):
        raise ConfigurationError("--output is the file of the questions; name another one")
    every = read_training_questions(arguments.questions).questions
    chosen = Selection(every, ())
    lines = [(len(every), f"questions in {arguments.questions}")]
    if arguments.drop_yes_no:
        chosen = select(chosen.kept, has_yes_no_answer)
        lines.append((len(chosen.dropped), "left out: a golden answer is yes, no, true or false"))
    if arguments.drop_answered:
        baseline = BaselineCache.load(arguments.drop_answered)
        baseline.require_questions(chosen.kept)
        chosen = select(chosen.kept, lambda question: baseline.rag_correct(question.id))
        lines.append((len(chosen.dropped), "left out: naive RAG answers them"))
    if not chosen.kept:
        raise ConfigurationError("no question would be left, so nothing was written")
    atomic_write(arguments.output, question_lines(chosen.kept))
    lines.append((len(chosen.kept), f"questions in {arguments.output}"))
    sources = Counter(question.source for question in every)
    if len(sources) > 1:
        kept = Counter(question.source for question in chosen.kept)
        lines += [(kept[name], f"of {count} from {name or 'no named source'}") for name, count in sources.items()]
    sys.stdout.write("".join(f"{count:>8} {text}\n" for count, text in lines))
    return 0
