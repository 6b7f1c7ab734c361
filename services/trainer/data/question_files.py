"""Which questions are in a data file? JSON lines of this project, parquet rows of Search-R1 and s3."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError

PARQUET_COLUMNS = ("prompt", "reward_model", "extra_info", "data_source", "question", "golden_answers", "id")


def read_questions(path: Path) -> list[Question]:
    """Read ``.jsonl`` or ``.parquet``.

    Raises:
        ConfigurationError: the file is missing, of another kind, empty, or a row lacks its question or answers.
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no question file {path}")
    match path.suffix:
        case ".jsonl":
            questions = [_from_json(row, f"{path}:{number}") for number, row in _json_rows(path)]
        case ".parquet":
            questions = [
                _from_parquet(row, f"row {number} of {path}") for number, row in enumerate(_parquet_rows(path))
            ]
        case suffix:
            raise ConfigurationError(
                f"{path}: question files end in .jsonl or .parquet, not {suffix or 'without a suffix'}"
            )
    if not questions:
        raise ConfigurationError(f"{path} holds no question")
    counts = Counter(question.id for question in questions)
    repeated = next((identifier for identifier, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise ConfigurationError(f"{path}: {counts[repeated]} questions have the id '{repeated}'; ids must be unique")
    return questions


def dataset_fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 of everything that training reads of the questions, in their order."""
    digest = hashlib.sha256()
    for question in questions:
        fields = [question.id, question.text, list(question.golden_answers), sorted(question.filters.items())]
        digest.update(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _json_rows(path: Path) -> Iterable[tuple[int, Mapping[str, object]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigurationError(f"{path}:{number}: not JSON: {error.msg}") from error
            except UnicodeDecodeError as error:
                raise ConfigurationError(f"{path}:{number}: not UTF-8 text") from error
            if not isinstance(row, dict):
                raise ConfigurationError(f"{path}:{number}: expected an object per line")
            yield number, row


def _parquet_rows(path: Path) -> list[dict[str, object]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        names = parquet.read_schema(path).names
        return parquet.read_table(path, columns=[name for name in PARQUET_COLUMNS if name in names]).to_pylist()
    except ArrowInvalid as error:
        raise ConfigurationError(f"{path} is not a parquet file: {error}") from error


def _from_json(row: Mapping[str, object], place: str) -> Question:
    text, answers = row.get("question"), _texts(row.get("golden_answers"))
    if not isinstance(text, str) or not text.strip() or not answers:
        raise ConfigurationError(f"{place}: a row needs 'question' and 'golden_answers'")
    return Question(
        id=str(row.get("id") or place),
        text=text,
        golden_answers=answers,
        source=str(row.get("source") or ""),
        filters=_strings(row.get("filters")),
        metadata=_strings(row.get("metadata")),
        gold_passage_ids=_texts(row.get("gold_doc_ids")),
    )


def _from_parquet(row: Mapping[str, object], place: str) -> Question:
    """Search-R1 and s3 keep the bare question in ``question`` or ``extra_info``, the answers in ``reward_model``.

    The question inside ``prompt`` is the last resort: there it is wrapped in their instruction.
    """
    extra = _mapping(row.get("extra_info"))
    ground_truth = _mapping(_mapping(row.get("reward_model")).get("ground_truth"))
    text = row.get("question") or extra.get("question") or ground_truth.get("question") or _prompt_question(row)
    answers = _texts(row.get("golden_answers")) or _texts(ground_truth.get("target") or ground_truth.get("gt_answer"))
    if not isinstance(text, str) or not text.strip() or not answers:
        raise ConfigurationError(f"{place}: found no question, or no answers in reward_model.ground_truth.target")
    index = extra.get("index", row.get("id"))
    source = str(row.get("data_source") or "")
    return Question(
        id=f"{source or 'row'}-{extra.get('split', '')}-{place.split()[1] if index is None else index}",
        text=text.strip(),
        golden_answers=answers,
        source=source,
    )


def _prompt_question(row: Mapping[str, object]) -> str | None:
    """The text behind the last "Question:" of the prompt's last message."""
    prompt = row.get("prompt")
    content = _mapping(prompt[-1]).get("content") if isinstance(prompt, list) and prompt else prompt
    if not isinstance(content, str):
        return None
    _, found, question = content.rpartition("Question:")
    return question.strip().removesuffix("<|im_end|>").strip() if found else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(each) for each in value) if isinstance(value, (list, tuple)) else ()


def _strings(value: object) -> dict[str, str]:
    return {str(key): str(each) for key, each in _mapping(value).items()}
