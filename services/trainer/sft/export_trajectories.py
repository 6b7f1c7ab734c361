"""Chooses trajectories of runs for supervised training: ``python -m services.trainer.sft.export_trajectories``.

This is rejection sampling: of the rollouts of each question, those with the highest rewards are kept.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ArrowException, parquet

from searchrl.errors import ConfigurationError, unknown_name
from searchrl.platform.processes import write_termination_message
from searchrl.platform.settings import read_yaml
from searchrl.storage.durable_files import atomic_path
from searchrl.tokenization.model_files import tokenizer_hash
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.runs.run_folder import RunFolder
from services.trainer.runs.trajectory_files import SCHEMA, TOKENIZER_KEY
from services.trainer.sft.chat_rows import ASSISTANT, SCORED

FLAGS = ("--run", "--output", "--min-reward", "--best", "--form", "--help")
FORMS = ("tokens", "messages")
_MARK = "QUESTION"  # stands for a message's text, to find what the chat template puts around it


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trajectory that may be kept.

    Attributes:
        run, file, row: where it stands.
        question: id and text, because two question files may use the same ids.
        digest: of its token ids; equal trajectories of a question teach the same.
    """

    run: Path
    file: Path
    row: int
    question: tuple[str, str]
    reward: float
    step: int
    digest: bytes


def select(candidates: Sequence[Candidate], best: int | None, counts: Counter[str]) -> list[Candidate]:
    """Keep the best of each question: the highest rewards, of equal ones those of the latest steps."""
    by_question: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        by_question.setdefault(candidate.question, []).append(candidate)
    kept: list[Candidate] = []
    for members in by_question.values():
        members.sort(key=lambda member: (-member.reward, -member.step, str(member.file), member.row))
        distinct = list({member.digest: member for member in reversed(members)}.values())[::-1]
        counts["left out: equal to another one of its question"] += len(members) - len(distinct)
        counts[f"left out: their question has {best} better ones"] += len(distinct) - len(distinct[:best])
        kept += distinct[:best]
    counts["questions with a kept trajectory"] = len(by_question)
    return sorted(kept, key=lambda member: (str(member.file), member.row))


def find_candidates(runs: Sequence[Path], min_reward: float, counts: Counter[str]) -> Iterator[Candidate]:
    """Yield the scored trajectories with at least this reward.

    Raises:
        ConfigurationError: a run has no trajectories, a file cannot be read, or the runs have several tokenizers.
    """
    tokenizers: dict[bytes, Path] = {}
    columns = ["step", "question_id", "question", "outcome", "reward", "ids"]
    for run in runs:
        files = sorted(RunFolder(run).trajectories.glob("step_*.parquet"))
        if not files:
            raise ConfigurationError(f"{run} holds no trajectories; logging.trajectories_every was 0, or it is no run")
        for file in files:
            table = _read(file, columns)
            tokenizers.setdefault((table.schema.metadata or {}).get(TOKENIZER_KEY, b""), run)
            if len(tokenizers) > 1:
                first, second, *_ = tokenizers.values()
                raise ConfigurationError(f"the runs {first} and {second} have different tokenizers; export them apart")
            for row, values in enumerate(table.to_pylist()):
                counts["trajectories"] += 1
                if values["outcome"] != SCORED or not values["ids"]:
                    counts["left out: failed, so they were not scored"] += 1
                elif values["reward"] < min_reward:
                    counts[f"left out: a reward below {min_reward:g}"] += 1
                else:
                    digest = hashlib.sha256(np.asarray(values["ids"], dtype=np.int64).tobytes()).digest()
                    question = (values["question_id"], values["question"])
                    yield Candidate(run, file, row, question, values["reward"], values["step"], digest)


def write_tokens(kept: Sequence[Candidate], output: Path) -> None:
    """Write the trajectories as they are, into one file of the format of a step's file."""
    metadata = (_read(kept[0].file, ["step"]).schema.metadata or {}).items()
    schema = SCHEMA.with_metadata({key: value for key, value in metadata if key == TOKENIZER_KEY})
    with atomic_path(output) as part, parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        for file, members in groupby(kept, key=lambda candidate: candidate.file):
            table = _read(file, SCHEMA.names).take([member.row for member in members])
            writer.write_table(table.replace_schema_metadata(schema.metadata).cast(schema))


def write_messages(kept: Sequence[Candidate], output: Path, tokenizer: ModelTokenizer, counts: Counter[str]) -> int:
    """Write the trajectories as conversations, for models with other tokens; return how many could be written."""
    written = 0
    with atomic_path(output) as part, part.open("w", encoding="utf-8") as lines:
        for file, members in groupby(kept, key=lambda candidate: candidate.file):
            rows = _read(file, ["step", "question_id", "reward", "ids", "mask"]).to_pylist()
            for member in members:
                row = rows[member.row]
                messages = to_messages(row["ids"], row["mask"], tokenizer)
                if messages is None:
                    counts["left out: the prompt cannot be written as a message"] += 1
                    continue
                named = {name: row[name] for name in ("question_id", "step", "reward")}
                lines.write(json.dumps({"messages": messages, **named}, ensure_ascii=False) + "\n")
                written += 1
    return written


def to_messages(ids: Sequence[int], mask: Sequence[bool], tokenizer: ModelTokenizer) -> list[dict[str, str]] | None:
    """Return the prompt and each observation as the user's messages, and each turn as the assistant's.

    None if the prompt is not what the chat template makes of its text, e.g. because a document had to be guarded.
    """
    spans = [
        (is_sampled, [token_id for token_id, _ in span])
        for is_sampled, span in groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    ]
    before, _, behind = str(tokenizer.render_chat_text([{"role": "user", "content": _MARK}])).partition(_MARK)
    head, tail = (tokenizer.decode(tokenizer.encode(text)) for text in (before, behind))
    prompt = tokenizer.decode(spans[0][1])
    text = prompt[len(head) : len(prompt) - len(tail)]
    if spans[0][0] or tokenizer.render_prompt(text) != spans[0][1]:
        return None
    rest = [
        {"role": ASSISTANT if is_sampled else "user", "content": tokenizer.decode(span)}
        for is_sampled, span in spans[1:]
    ]
    return [{"role": "user", "content": text}, *rest]


def find_tokenizer(run: Path, trajectories: Path) -> ModelTokenizer:
    """Open the tokenizer that a run's trajectories were sampled with.

    Raises:
        ConfigurationError: neither the run's model nor the model that it started from has it.
    """
    wanted = (_read(trajectories, ["step"]).schema.metadata or {}).get(TOKENIZER_KEY, b"").decode()
    folder = RunFolder(run)
    started_from = Path(str(read_yaml(folder.config).get("model", ""))) if folder.config.is_file() else folder.final
    for model in (folder.final, started_from):
        if (model / "tokenizer.json").is_file() and tokenizer_hash(model) == wanted:
            return ModelTokenizer.from_folder(model)
    raise ConfigurationError(
        f"neither {folder.final} nor {started_from} has the tokenizer that {trajectories} was sampled with"
    )


def _read(file: Path, columns: Sequence[str]) -> pa.Table:
    try:
        return parquet.read_table(file, columns=list(columns))
    except (ArrowException, OSError) as error:
        raise ConfigurationError(f"{file} is not a readable file of trajectories: {error}") from error


def export(arguments: argparse.Namespace) -> Counter[str]:
    """Write the chosen trajectories, and return what was left out and why.

    Raises:
        ConfigurationError: the runs cannot be used, or nothing would be written.
    """
    counts: Counter[str] = Counter()
    kept = select(list(find_candidates(arguments.run, arguments.min_reward, counts)), arguments.best, counts)
    if not kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        raise ConfigurationError(f"no trajectory would be left, so nothing was written: {reasons}")
    written = len(kept)
    if arguments.form == "tokens":
        write_tokens(kept, arguments.output)
    else:
        tokenizer = find_tokenizer(kept[0].run, kept[0].file)
        written = write_messages(kept, arguments.output, tokenizer, counts)
    counts[f"trajectories in {arguments.output}"] = written
    return counts


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises:
    ConfigurationError: a flag that does not exist, or an impossible value.
    """
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.sft.export_trajectories", description=__doc__, allow_abbrev=False
    )
    add: Any = parser.add_argument
    add("--run", type=Path, action="append", required=True, metavar="DIR", help="run folder; may be repeated")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write")
    add("--min-reward", type=float, required=True, metavar="REWARD", help="lower rewards are left out")
    add("--best", type=int, metavar="N", help="at most so many of each question; default: all")
    add(
        "--form",
        choices=FORMS,
        default="tokens",
        help="tokens: parquet, exactly as sampled, for models with the same tokenizer; messages: conversations as "
        "JSON lines, for other models",
    )
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(unknown_name("flag", unknown[0], FLAGS))
    if arguments.best is not None and arguments.best < 1:
        raise ConfigurationError(f"--best must be at least 1, got {arguments.best}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 a run cannot be used, or nothing would be left."""
    try:
        counts = export(parse_arguments(argv))
    except ConfigurationError as error:
        write_termination_message(f"export_trajectories: {error}")
        return 2
    sys.stdout.write("".join(f"{count:>8} {text}\n" for text, count in counts.items() if count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
