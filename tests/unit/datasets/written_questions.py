"""Writes questions to a file, and reads them as the services do."""

import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from searchrl.datasets.question_file import read_questions
from searchrl.domain.question import Question


def read(tmp_path: Path, content: object) -> tuple[Question, ...]:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return read_questions(path).questions


def read_parquet(tmp_path: Path, *rows: dict) -> tuple[Question, ...]:
    parquet.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "q.parquet")
    return read_questions(tmp_path / "q.parquet").questions
