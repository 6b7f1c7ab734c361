"""Entry point of ``searchrl``: the table of commands, and how one is dispatched."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import searchrl
from searchrl.cli.command_parser import CommandParser
from searchrl.errors import PERMANENT_KINDS, ConfigurationError, ServiceError, unknown_name

BAD_USE, FAILED, SIGINT_EXIT = 2, 1, 130  # exit codes; 130 is 128 + SIGINT, as a shell reports it


class Command(NamedTuple):
    """A command's module, imported only when the command is called, and its summary for the help."""

    module: str
    summary: str


class CommandModule(Protocol):
    """What each module of ``searchrl/cli/commands`` provides; ``run`` returns the exit code."""

    def add_arguments(self, parser: CommandParser) -> None: ...

    def run(self, arguments: object) -> int: ...


COMMANDS = {
    "quickstart": Command("searchrl.cli.commands.quickstart", "see it work: small world, RL, evaluation, report"),
    "up": Command("searchrl.cli.commands.up", "start the services on this machine"),
    "status": Command("searchrl.cli.commands.status", "show what is running"),
    "down": Command("searchrl.cli.commands.down", "stop what 'up' started"),
    "ask": Command("searchrl.cli.commands.ask", "ask a running system a question and watch the steps"),
    "index": Command("searchrl.cli.commands.index", "build an index from a corpus"),
    "questions": Command("searchrl.cli.commands.questions", "leave out questions that training does not need"),
    "baseline": Command("searchrl.cli.commands.baseline", "answer training questions with naive RAG, once"),
    "profile": Command("searchrl.cli.commands.profile", "say how a model searches: write its searcher.json"),
    "train": Command("searchrl.cli.commands.train", "train a searcher"),
    "sft": Command("searchrl.cli.commands.sft", "train a model on conversations of your own"),
    "trajectories": Command("searchrl.cli.commands.trajectories", "choose trajectories of a run to train on"),
    "evaluate": Command("searchrl.cli.commands.evaluate", "compare answering methods on questions"),
    "submit": Command("searchrl.cli.commands.submit", "run a step as a job in a Kubernetes cluster"),
    "runs": Command("searchrl.cli.commands.runs", "see, follow, stop and resume jobs of a cluster; explain a run"),
    "small-world": Command("searchrl.cli.commands.small_world", "write a small world's corpus and questions"),
    "doctor": Command("searchrl.cli.commands.doctor", "check this machine, and all that a run needs"),
}


def main() -> None:
    """Entry point of the ``searchrl`` program."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run one command. Exit codes: 0 done, 1 failed, 2 used wrongly or unusable input, 130 interrupted."""
    try:
        return _dispatch(argv)
    # Any other exception is a bug of ours and keeps its traceback.
    except ConfigurationError as error:
        sys.stderr.write(f"searchrl: {error}\n")
        return BAD_USE
    except ServiceError as error:
        sys.stderr.write(f"searchrl: {str(error) or error.kind.value}\n")
        # A script may repeat the same call after 1; after 2 it has to change something first.
        return BAD_USE if error.kind in PERMANENT_KINDS else FAILED
    except KeyboardInterrupt:
        return SIGINT_EXIT
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads our output any more; Python would report the failed flush at exit
        return FAILED


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    name, *rest = argv
    if name == "--version":
        sys.stdout.write(f"searchrl {searchrl.__version__}\n")
        return 0
    if name not in COMMANDS:
        raise ConfigurationError(unknown_name("command", name, COMMANDS))
    command = COMMANDS[name]
    # Only the module of this command: ``--help`` and a misspelled command answer without importing gRPC or rich.
    module = cast(CommandModule, importlib.import_module(command.module))
    parser = CommandParser(f"searchrl {name}", f"{command.summary[0].upper()}{command.summary[1:]}.")
    module.add_arguments(parser)
    return module.run(parser.parse(rest))


def _overview() -> str:
    rows = "\n".join(f"  {name:<12} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: searchrl COMMAND [options]\n\n"
        "Train a small search agent by reinforcement learning, and serve it.\n\n"
        f"commands:\n{rows}\n\n"
        "'searchrl COMMAND --help' explains a command; 'searchrl --version' names the version.\n"
    )


if __name__ == "__main__":
    main()
