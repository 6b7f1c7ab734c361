"""Command that writes ``searcher.json`` into a model's folder, so that the model can be trained and served."""

import argparse
import sys
from dataclasses import fields
from datetime import date
from pathlib import Path

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError

# Flag, name in ``Limits``, and help.
LIMITS = (
    ("--searches", "max_searches", "searches per question"),
    ("--top-k", "top_k", "documents per search"),
    ("--turn-tokens", "max_turn_tokens", "sampled tokens per turn"),
    ("--observation-tokens", "max_observation_tokens", "tokens of the documents of one search"),
    ("--context-tokens", "max_context_tokens", "tokens of the prompt and all that follows it"),
)


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FOLDER", help="model folder in the form of Hugging Face")
    add("--protocol", choices=("s3", "search_r1"), required=True, help="how the model searches")
    add("--mode", choices=("strict", "legacy"), default="strict", help="legacy: the rules of published checkpoints")
    add("--template", type=Path, metavar="FILE", help="prompt with {question} and {documents}; default: our own")
    add("--thinking", choices=("on", "off"), help="of models that can think before they write (default off)")
    add("--date", metavar="YYYY-MM-DD", help="date for chat templates that print today's (default: today, fixed)")
    add("--temperature", type=float, help="sampling temperature")
    add("--top-p", type=float, help="nucleus sampling; training needs 1")
    add("--initial-top-k", type=int, help="documents shown with the question; 0: none")
    for flag, name, help_ in LIMITS:
        add(flag, type=int, dest=name, metavar="N", help=help_)
    add("--force", action="store_true", help="replace a searcher.json that says something else")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 written or already there, 2 the model or a flag cannot be used; then nothing is written."""
    # Imported when it runs, so that --help does not load the tokenizer's library.
    from searchrl.agent.profile import PROFILE_FILE
    from searchrl.storage.durable_files import atomic_write
    from searchrl.tokenization.profile_choice import CHAT_TEMPLATE_FILE, Wishes, choose_profile

    folder: Path = arguments.model
    if not folder.is_dir():
        raise ConfigurationError(f"--model: there is no folder {folder}")
    wishes = Wishes(
        template=_read_template(arguments.template),
        thinking=None if arguments.thinking is None else arguments.thinking == "on",
        day=_read_date(arguments.date),
        limits={name: value for _, name, _ in LIMITS if (value := getattr(arguments, name)) is not None},
        **{name: getattr(arguments, name) for name in ("temperature", "top_p", "initial_top_k")},
    )
    choice = choose_profile(folder, arguments.protocol, arguments.mode, wishes)
    width = max(len(field.name) for field in fields(choice.profile.limits)) + 2
    for decision in choice.decisions:
        sys.stdout.write(f"{decision.name:<{width}}{decision.value:<18} {decision.reason}\n")
    file, text = folder / PROFILE_FILE, choice.profile.to_json()
    if file.exists() and file.read_text(encoding="utf-8") != text:
        _check_replaceable(file, arguments.force)
    try:
        if choice.chat_template is not None:
            atomic_write(folder / CHAT_TEMPLATE_FILE, choice.chat_template)
        atomic_write(file, text)
    except OSError as error:
        raise ConfigurationError(f"cannot write {file}: {error.strerror}") from error
    sys.stdout.write(f"wrote {file}\n")
    return 0


def _check_replaceable(file: Path, force: bool) -> None:
    """Refuse to replace a profile that the user did not mean to, or whose checksum others rely on.

    Raises:
        ConfigurationError: it stays as it is.
    """
    from searchrl.storage.artifact_manifest import MANIFEST_FILE, read_artifact

    if not force:
        raise ConfigurationError(f"{file} exists and says something else; --force replaces it")
    artifact = read_artifact(file.parent)
    if artifact is not None and file.name in artifact.files:
        raise ConfigurationError(
            f"{file} is one of the files that {MANIFEST_FILE} beside it verifies; copy the folder without "
            f"{MANIFEST_FILE}, and change the copy"
        )


def _read_template(path: Path | None) -> str | None:
    """Return the text byte for byte: a checkpoint reads another line end as another prompt.

    Raises:
        ConfigurationError: there is no such file, or it is not UTF-8.
    """
    try:
        return None if path is None else path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--template: cannot read {path}: {error}") from error


def _read_date(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"--date must be YYYY-MM-DD, got {text!r}") from error
