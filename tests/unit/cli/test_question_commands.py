"""``searchrl questions`` and ``searchrl baseline``: s3's data steps from one parquet file."""

import os
from argparse import Namespace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands import baseline
from searchrl.cli.main import run
from searchrl.datasets.question_file import read_questions
from searchrl.domain.question import question_sha256
from searchrl.errors import ConfigurationError
from searchrl.local.instance import Instance, ServiceRecord
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion

ROWS = [
    ("nq", "who?", ["Ada"]),
    ("nq", "is it?", ["yes"]),
    ("hotpotqa", "where?", ["Ystad"]),
    ("hotpotqa", "when?", ["1969"]),
]


def parquet(folder: Path) -> Path:
    """Write training rows in the form of s3 and Search-R1."""
    rows = [
        {
            "data_source": source,
            "question": text,
            "prompt": [{"role": "user", "content": f"Find documents. Question: {text}"}],
            "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
            "extra_info": {"split": "train", "index": number},
        }
        for number, (source, text, answers) in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder / "train.parquet"


def write_baseline(folder: Path, questions: Path, answered: set[str]) -> Path:
    entries = {
        question.id: Baseline(question.text, "x", question.text in answered, False, "", question_sha256(question))
        for question in read_questions(questions).questions
    }
    BaselineCache(BaselineVersion(top_k=3), entries).save(folder / "baseline.json")
    return folder / "baseline.json"


def test_questions_with_yes_or_no_and_those_that_naive_rag_answers_are_left_out_with_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, kept = parquet(tmp_path), tmp_path / "kept.jsonl"
    rag = write_baseline(tmp_path, file, {"where?"})
    assert run(["questions", str(file), "--output", str(kept), "--drop-yes-no", "--drop-answered", str(rag)]) == 0
    every = read_questions(file).questions
    assert read_questions(kept).questions == (every[0], every[3])
    counts = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [number for number, _ in counts] == ["4", "1", "1", "2", "1", "1"]
    assert [text for _, text in counts][4:] == ["of 2 from nq", "of 2 from hotpotqa"]


def test_the_baseline_of_all_questions_is_one_of_those_that_are_left(tmp_path: Path) -> None:
    file, kept = parquet(tmp_path), tmp_path / "kept.jsonl"
    rag = write_baseline(tmp_path, file, set())
    assert run(["questions", str(file), "--output", str(kept), "--drop-yes-no"]) == 0
    BaselineCache.load(rag).require_questions(read_questions(kept).questions)


def test_a_baseline_of_other_golden_answers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, kept = parquet(tmp_path), tmp_path / "kept.jsonl"
    rag = write_baseline(tmp_path, file, set())
    file.write_text('{"id": "nq-train-0", "question": "who?", "golden_answers": ["Eve"]}\n')
    assert run(["questions", str(file), "--output", str(kept), "--drop-answered", str(rag)]) == 2
    assert "other texts or golden answers" in capsys.readouterr().err and not kept.exists()


def test_nothing_is_written_if_nothing_can_be_decided_or_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, kept = parquet(tmp_path), tmp_path / "kept.jsonl"
    assert run(["questions", str(file), "--output", str(kept)]) == 2
    assert run(["questions", str(file), "--output", str(file), "--drop-yes-no"]) == 2
    everything = write_baseline(tmp_path, file, {text for _, text, _ in ROWS})
    assert run(["questions", str(file), "--output", str(kept), "--drop-answered", str(everything)]) == 2
    BaselineCache(BaselineVersion(), {}).save(everything)
    assert run(["questions", str(file), "--output", str(kept), "--drop-answered", str(everything)]) == 2
    said = capsys.readouterr().err
    for sentence in ("say what to leave out", "name another one", "no question would be left", "no naive-RAG baseline"):
        assert sentence in said
    assert not kept.exists()


def arguments(*argv: str) -> Namespace:
    parser = CommandParser("searchrl baseline", "")
    baseline.add_arguments(parser)
    return parser.parse(argv)


def test_the_baseline_is_made_by_the_generator_that_runs_in_the_folder(tmp_path: Path) -> None:
    flags = ["--questions", "train.parquet", "--output", "b.json"]
    with pytest.raises(ConfigurationError):
        baseline.baseline_arguments(arguments("--folder", str(tmp_path), *flags))
    services = {"generator": ServiceRecord("ready", grpc="h:2")}
    started = psutil.Process().create_time()
    Instance(str(tmp_path), os.getpid(), started, "ready", "0", {}, services).write()
    given = arguments("--folder", str(tmp_path), *flags)
    assert baseline.baseline_arguments(given) == ["--generator", "h:2", *flags]
    given = arguments("--folder", str(tmp_path), "--generator", "h:3", *flags)
    assert baseline.baseline_arguments(given) == ["--generator", "h:3", *flags]


def test_a_file_of_s3_is_converted_without_services(tmp_path: Path) -> None:
    flags = ["--questions", "train.parquet", "--output", "b.json", "--import-s3", "rag_cache.json"]
    assert baseline.baseline_arguments(arguments("--folder", str(tmp_path), *flags)) == flags
