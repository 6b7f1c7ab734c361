"""Reads and writes s3's result files: its baseline cache and its stored contexts."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.agent.rendering import DocumentForm, render_document
from searchrl.datasets.golden_answers import golden_texts
from searchrl.datasets.row import BadRow, describe
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from searchrl.input_files import parse_json
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion

DEFAULT_SOURCE = "questions"
# A document of a stored context begins at "Doc n (Title:" or "Doc n(Title:"; a quoted title may hold parentheses.
_DOCUMENT = re.compile(r'^Doc \d+ ?\(Title: ?(?:"(?P<quoted>.*?)"|(?P<bare>[^\n]*?))\)[ \n]', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StoredContext:
    """The documents that a searcher of s3 selected for one question."""

    question: str
    golden_answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    response: str


def import_rag_cache(path: Path, questions: Iterable[Question]) -> tuple[BaselineCache, list[str]]:
    """Read ``rag_cache.json`` for our questions, by source and text; also return the ids it does not have.

    Questions are compared as ``question_key`` writes them; a question without a source is looked up in every source.

    Raises:
        NotFound, InvalidRequest: the file is missing or of another form.
    """
    content = {source: _index_by_key(path, source, entries) for source, entries in _read(path).items()}
    baselines: dict[str, Baseline] = {}
    absent: list[str] = []
    for question in questions:
        sources = [question.source] if question.source else list(content)
        known = _find(content, sources, question.text)
        if known is None:
            absent.append(question.id)
            continue
        source, entry = known
        try:
            correct, exact = _read_score(entry, "score"), "em_score" in entry and _read_score(entry, "em_score")
            baselines[question.id] = Baseline(question.text, _read_answer(entry), correct, exact, source)
        except BadEntry as error:
            raise InvalidRequest(f"{path}: the entry of {question.text!r} {error}") from error
    # s3's file does not say which index and model it was made with.
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
    """Read ``{source}_output_sequences.json``, the contexts of an s3 run, so that they can be answered and scored here.

    Raises:
        NotFound, InvalidRequest: the file is missing or of another form.
    """
    contexts = []
    for text, entry in _read(path).items():
        if not isinstance(entry.get("context_with_info"), str):
            raise InvalidRequest(f"{path}: the entry of {text!r} has no context_with_info")
        try:
            answers = tuple(golden_texts(entry.get("golden_answers")))
        except BadRow as error:
            raise InvalidRequest(f"{path}: the entry of {text!r}: {error}") from error
        passages = parse_context(str(entry["context_with_info"]))
        contexts.append(StoredContext(text, answers, passages, str(entry.get("response_str", ""))))
    return contexts


def export_output_sequences(contexts: Iterable[StoredContext], path: Path) -> None:
    """Write contexts in s3's form, documents numbered from 1."""
    content = {
        question_key(context.question): {
            "golden_answers": list(context.golden_answers),
            "context_with_info": render_context(context.passages),
            "response_str": context.response,
        }
        for context in contexts
    }
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def render_context(passages: Sequence[Passage]) -> str:
    """The text of a stored context."""
    return "".join(
        render_document(number, passage, DocumentForm.CONTEXT, exact_title=True)
        for number, passage in enumerate(passages, start=1)
    )


def parse_context(context: str) -> tuple[Passage, ...]:
    """The documents of a stored context; the file does not contain their ids, so they are numbered."""
    heads = list(_DOCUMENT.finditer(context))
    # A document ends where the next one begins: 3 heads at 0, 410 and 800 in a text of 1200 end at 410, 800 and 1200.
    ends = [*(head.start() for head in heads), len(context)][1:]
    return tuple(
        Passage(str(number), (head["quoted"] or head["bare"] or "").strip(), context[head.end() : end].strip())
        for number, (head, end) in enumerate(zip(heads, ends, strict=True), start=1)
    )


Entry = Mapping[str, object]


class BadEntry(ValueError):
    """The entry cannot be used; the message says what was found."""


def _index_by_key(path: Path, source: str, entries: Mapping[str, object]) -> dict[str, Entry]:
    """A source's entries by the key of their questions."""
    for text, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise InvalidRequest(f"{path}: the entry of {text!r} in {source!r} is {describe(entry)}, not an object")
    return {question_key(text): entry for text, entry in entries.items() if isinstance(entry, Mapping)}


def _find(content: Mapping[str, Mapping[str, Entry]], sources: Sequence[str], text: str) -> tuple[str, Entry] | None:
    key = question_key(text)
    return next(((source, content[source][key]) for source in sources if key in content.get(source, {})), None)


def _read_score(entry: Entry, key: str) -> bool:
    """Whether a score is 1, in every spelling of s3 and of tools for its files: 1, 1.0, "1", "1.0", true."""
    value = entry.get(key)
    number = value
    if isinstance(value, str):
        spelled = {"true": 1, "false": 0}.get(value.strip().lower())
        with contextlib.suppress(ValueError):
            number = float(value) if spelled is None else spelled
    if isinstance(number, int | float) and number in (0, 1):
        return bool(number)
    raise BadEntry(f'has no usable "{key}": found {describe(value)}, must be 0 or 1')


def _read_answer(entry: Entry) -> str:
    """The answer; null, which some runs wrote for an empty reply of the generator, is an empty answer."""
    if "answer" not in entry:
        raise BadEntry(f'has no "answer": found {describe(entry)}')
    answer = entry["answer"]
    if answer is None:
        return ""
    if not isinstance(answer, str | int | float):
        raise BadEntry(f'has no usable "answer": found {describe(answer)}')
    return str(answer)


def question_key(text: str) -> str:
    """s3's join key: the stripped question with a question mark. Keys of a file are stripped, too, because s3's medical
    questions end with a newline.
    """
    text = text.strip()
    return text if text.endswith("?") else text + "?"


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InvalidRequest(f"{path} is not one of s3's result files: it must be an object of objects")
    return content
