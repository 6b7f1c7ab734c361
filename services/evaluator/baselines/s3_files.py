"""How do s3's result files read and write? Its baseline cache and its stored contexts."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion

DEFAULT_SOURCE = "questions"
# A document of a stored context begins at "Doc n (Title:" or "Doc n(Title:"; a quoted title may hold parentheses.
_DOCUMENT = re.compile(r'^Doc \d+ ?\(Title: ?(?:"(?P<quoted>.*?)"|(?P<bare>[^\n]*?))\)[ \n]', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StoredContext:
    """What a searcher of s3 gathered for one question."""

    question: str
    golden_answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    response: str


def import_rag_cache(path: Path, questions: Iterable[Question]) -> tuple[BaselineCache, list[str]]:
    """Read ``rag_cache.json`` for our questions, by source and text; also return the ids it does not have.

    s3 appends a question mark where a question has none, so both spellings are tried; a question without a source is
    looked up in every source.

    Raises:
        NotFound, InvalidRequest: the file is missing or of another form.
    """
    content = _read(path)
    baselines: dict[str, Baseline] = {}
    absent: list[str] = []
    for question in questions:
        sources = [question.source] if question.source else list(content)
        found = _find(content, sources, question.text)
        if found is None:
            absent.append(question.id)
            continue
        source, entry = found
        try:
            correct, exact = bool(int(str(entry["score"]))), bool(int(str(entry.get("em_score", 0))))
            baselines[question.id] = Baseline(question.text, str(entry["answer"]), correct, exact, source)
        except (KeyError, ValueError) as error:
            raise InvalidRequest(f"{path}: the entry of {question.text!r} has no usable {error}") from error
    return BaselineCache(BaselineVersion(), baselines), absent


def export_rag_cache(cache: BaselineCache, path: Path) -> None:
    """Write ``rag_cache.json``: ``{source: {question: {"answer", "score", "em_score"}}}``."""
    content: dict[str, dict[str, dict[str, str | int]]] = {}
    for _, baseline in cache.items():
        content.setdefault(baseline.source or DEFAULT_SOURCE, {})[question_key(baseline.question)] = {
            "answer": baseline.answer,
            "score": int(baseline.correct),
            "em_score": int(baseline.exact_match),
        }
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def import_output_sequences(path: Path) -> list[StoredContext]:
    """Read ``{source}_output_sequences.json``: what an s3 run gathered, so that it can be answered and scored here.

    Raises:
        NotFound, InvalidRequest: the file is missing or of another form.
    """
    contexts = []
    for text, entry in _read(path).items():
        if not isinstance(entry.get("context_with_info"), str):
            raise InvalidRequest(f"{path}: the entry of {text!r} has no context_with_info")
        golden = entry.get("golden_answers", [])
        answers = (golden,) if isinstance(golden, str) else tuple(map(str, golden if isinstance(golden, list) else []))
        passages = passages_of_context(str(entry["context_with_info"]))
        contexts.append(StoredContext(text, answers, passages, str(entry.get("response_str", ""))))
    return contexts


def export_output_sequences(contexts: Iterable[StoredContext], path: Path) -> None:
    """Write contexts in s3's form, documents numbered from 1."""
    content = {
        question_key(context.question): {
            "golden_answers": list(context.golden_answers),
            "context_with_info": context_of_passages(context.passages),
            "response_str": context.response,
        }
        for context in contexts
    }
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def context_of_passages(passages: Sequence[Passage]) -> str:
    """The text of a stored context."""
    return "".join(
        f'Doc {number} (Title: "{passage.title}")\n{passage.text}\n\n'
        for number, passage in enumerate(passages, start=1)
    )


def passages_of_context(context: str) -> tuple[Passage, ...]:
    """The documents of a stored context; they have lost their ids and are numbered instead."""
    heads = list(_DOCUMENT.finditer(context))
    ends = [*(head.start() for head in heads), len(context)][1:]
    return tuple(
        Passage(str(number), (head["quoted"] or head["bare"] or "").strip(), context[head.end() : end].strip())
        for number, (head, end) in enumerate(zip(heads, ends, strict=True), start=1)
    )


def _find(
    content: Mapping[str, Mapping[str, object]], sources: Sequence[str], text: str
) -> tuple[str, Mapping[str, object]] | None:
    for source in sources:
        for spelling in (text, question_key(text)):
            entry = content.get(source, {}).get(spelling)
            if isinstance(entry, Mapping):
                return source, entry
    return None


def question_key(text: str) -> str:
    """s3's join key: the stripped question with a question mark."""
    text = text.strip()
    return text if text.endswith("?") else text + "?"


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InvalidRequest(f"{path} is not one of s3's result files: it must be an object of objects")
    return content
