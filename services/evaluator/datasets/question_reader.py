"""Which questions does a file hold, and which exact file was it?"""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from services.evaluator.datasets.question_row import BadRow, question_from_row


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions in file order. ``sha256`` is that of the whole (unpacked) file, whatever ``limit`` was applied."""

    path: Path
    sha256: str
    questions: tuple[Question, ...]


def read_questions(path: Path, *, limit: int = 0, need_golden_answers: bool = True) -> QuestionSet:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file; ``limit`` 0 keeps every question.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: a row is unusable, an id occurs twice, or golden answers are missing; names the line.
    """
    content = _content(path)
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8: {error}") from error
    questions = _questions_of(path, lines, need_golden_answers)
    if not questions:
        raise InvalidRequest(f"{path} holds no question")
    kept = questions[:limit] if limit else questions
    return QuestionSet(path, hashlib.sha256(content).hexdigest(), tuple(kept))


def questions_sha256(path: Path) -> str:
    """Fingerprint of a question file, unpacked.

    Raises:
        NotFound, InvalidRequest: the file cannot be read.
    """
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFound(f"there is no question file {path}") from error
    except (OSError, EOFError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def _questions_of(path: Path, lines: list[str], need_golden_answers: bool) -> list[Question]:
    questions: list[Question] = []
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise BadRow("must be a JSON object")
            question = question_from_row(row, len(questions))
        except (json.JSONDecodeError, BadRow) as error:
            raise InvalidRequest(f"{path}, line {number}: {error}") from error
        if need_golden_answers and not question.golden_answers:
            raise InvalidRequest(
                f"{path}, line {number}: question {question.id!r} has no golden answers; "
                "add them, or allow questions that cannot be scored"
            )
        if question.id in line_of_id:
            raise InvalidRequest(
                f"{path}, line {number}: id {question.id!r} was used before, in line {line_of_id[question.id]}"
            )
        line_of_id[question.id] = number
        questions.append(question)
    return questions
