"""Reads the questions of a file, for training, evaluation and baselines alike."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from searchrl.datasets.file_content import FileContent, open_question_file
from searchrl.datasets.json_records import json_records
from searchrl.datasets.question_row import question_from_row
from searchrl.datasets.row import BadRow, Record
from searchrl.datasets.shapes.beir import find_qrels, read_qrels
from searchrl.datasets.table_records import is_table, parquet_records, table_records
from searchrl.domain.passage import normalize_passage_id
from searchrl.domain.question import Question, question_content
from searchrl.errors import ConfigurationError, InvalidRequest, ServiceError, TooLarge

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 2_000_000
"""Questions are held in memory at about 1.5 kB each, 3 GB for this number. The largest
public training sets have a tenth of it."""


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions in file order. ``sha256`` is that of the complete (unpacked) file, even if a ``limit`` was applied."""

    path: Path
    sha256: str
    questions: tuple[Question, ...]


def read_questions(path: Path, *, limit: int = 0, need_golden_answers: bool = True) -> QuestionSet:
    """Read a file of questions in any supported format. ``limit`` 0 keeps every question.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: the file or a row is unusable, an id occurs twice, or golden answers are missing; names the
            place and what was found there.
        TooLarge: the file is over a limit.
        ConfigurationError: the file is parquet and pyarrow is not installed.
    """
    content = open_question_file(path)
    try:
        questions, are_queries = _collect(path, _records(content), need_golden_answers)
        sha256 = content.sha256()
    finally:
        content.close()
    # Only if every row is a query without answers: other questions are judged by their answers, not by qrels.
    if are_queries and (qrels := find_qrels(path)) is not None:
        questions, sha256 = _keep_judged(questions, qrels, sha256)
    if not questions:
        raise InvalidRequest(f"{path} holds no question")
    # The limit is applied last: every row is checked, and the fingerprint is that of the complete file.
    return QuestionSet(path, sha256, tuple(questions[:limit] if limit else questions))


def read_training_questions(path: Path) -> QuestionSet:
    """Read a file of training questions, all with golden answers.

    Raises:
        ConfigurationError: the file cannot be used; the message is one sentence.
    """
    try:
        return read_questions(path)
    except ServiceError as error:
        raise ConfigurationError(str(error)) from error


def questions_sha256(path: Path) -> str:
    """Return the fingerprint of a question file, unpacked, including the judgments that belong to it.

    Raises:
        NotFound, InvalidRequest, TooLarge, ConfigurationError: as ``read_questions``.
    """
    return read_questions(path, need_golden_answers=False).sha256


def dataset_fingerprint(questions: Sequence[Question]) -> str:
    """Return the SHA-256 of everything that training reads of the questions, in their order."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(question_content(question) + b"\n")
    return digest.hexdigest()


def _records(content: FileContent) -> Iterator[Record]:
    if content.kind == "parquet":
        return parquet_records(content)
    return table_records(content) if is_table(content) else json_records(content)


def _collect(path: Path, records: Iterator[Record], need_golden_answers: bool) -> tuple[list[Question], bool]:
    """Return the questions, and whether all of them are queries that qrels may judge."""
    questions: list[Question] = []
    place_of_id: dict[str, str] = {}
    unnamed: Counter[str] = Counter()
    are_queries = True
    # JSON lines and tables are read row by row: only the questions stay in memory, never the documents of their rows.
    for place, row in records:
        try:
            question, has_id, is_query = question_from_row(row)
        except BadRow as error:
            raise InvalidRequest(f"{path}, {place}: {error}") from error
        if need_golden_answers and not question.golden_answers:
            raise InvalidRequest(
                f"{path}, {place}: question {question.id!r} has no golden answers; "
                "add them (an evaluation may also allow questions that cannot be scored)"
            )
        if not has_id:
            # A row without an id is named after its text; equal texts are numbered in the order of the file.
            unnamed[question.id] += 1
            if unnamed[question.id] > 1:  # the same question again
                question = replace(question, id=f"{question.id}-{unnamed[question.id]}")
        if question.id in place_of_id:
            raise InvalidRequest(f"{path}, {place}: id {question.id!r} was used before, in {place_of_id[question.id]}")
        if len(questions) == MAX_QUESTIONS:
            raise TooLarge(f"{path} holds more than {MAX_QUESTIONS} questions; split it")
        place_of_id[question.id] = place
        questions.append(question)
        are_queries &= is_query
    return questions, are_queries and bool(questions)


def _keep_judged(questions: list[Question], qrels: Path, sha256: str) -> tuple[list[Question], str]:
    """Return the queries that the qrels judge, with their relevant passages, and the fingerprint of both files."""
    judgments, content = read_qrels(qrels)
    judged = [
        replace(question, gold_passage_ids=tuple(map(normalize_passage_id, judgments[question.id])))
        for question in questions
        if question.id in judgments
    ]
    if not judged:
        raise InvalidRequest(
            f"{qrels} judges none of the {len(questions)} queries; do they belong to another data set?"
        )
    logger.info("%s judges %d of %d queries; the others are left out", qrels, len(judged), len(questions))
    return judged, hashlib.sha256(f"{sha256} {hashlib.sha256(content).hexdigest()}".encode()).hexdigest()
