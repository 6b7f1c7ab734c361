"""Stores for each training question whether naive RAG answers it correctly: written once, read by the trainer.

Gain Beyond RAG compares a rollout with naive RAG on the same question. The evaluator answers every training question
with naive RAG once (``python -m services.evaluator.commands.build_baseline``) and writes this file; the trainer reads
it:

    baselines = BaselineCache.load(path)
    baselines.require(index_generation=..., top_k=3)        # at start: refuse baselines of another setup
    baselines.require_questions(questions)                  # at start: name questions that are missing or have changed
    reward = gain_beyond_rag(correct, baselines.rag_correct(question.id))      # per rollout

A baseline is valid for one question file, index generation, mode, k, generator, prompt and judge only. A missing entry
is an error; it never counts as a wrong answer.
The file is

    {"format", "version": {...}, "entries": [{"question_id", "question", "source", "answer", "correct", "exact_match",
                                                      "question_sha256"}]}

Coverage is checked question by question, not by the hash of the file: training on a part of the questions, or on the
same questions in another file format, needs no new baselines.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from searchrl.domain.question import Question, question_sha256
from searchrl.errors import Conflict, InvalidRequest, NotFound
from searchrl.input_files import parse_json
from searchrl.storage.durable_files import atomic_write

FORMAT = "searchrl-rag-baseline-1"
MOST_NAMED = 3
"""Question ids in an error message; the rest is a count, so that a message stays one readable line."""


@dataclass(frozen=True, slots=True)
class BaselineVersion:
    """The setup for which the baselines are valid. Empty, 0 or None: unknown, as in files imported from s3.

    Attributes:
        mode: requested retrieval mode; empty also for the index's default.
        template_hash: hash of the generator's prompt.
        max_context_tokens, max_answer_tokens, temperature: settings of the generator.
    """

    questions_sha256: str = ""
    index_generation: str = ""
    top_k: int = 0
    generator_model: str = ""
    judge_version: str = ""
    mode: str = ""
    template_hash: str = ""
    max_context_tokens: int = 0
    max_answer_tokens: int = 0
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """Naive RAG's answer to one question.

    ``source`` and ``question`` identify it in s3's files. ``question_sha256`` covers all texts and golden answers of
    the question; it is empty in imported files, which contain only its text.
    """

    question: str
    answer: str
    correct: bool
    exact_match: bool
    source: str = ""
    question_sha256: str = ""

    def is_of(self, question: Question) -> bool:
        """Return whether the question is unchanged since it was answered and judged."""
        # An imported baseline has no hash, and possibly no text; then there is nothing to compare.
        if self.question_sha256:
            return self.question_sha256 == question_sha256(question)
        return self.question in ("", question.text)


UNKNOWN_VERSION = BaselineVersion()


class BaselineCache:
    """Baselines by question id."""

    def __init__(self, version: BaselineVersion, baselines: Mapping[str, Baseline]) -> None:
        self.version = version
        self._baselines = dict(baselines)

    def __len__(self) -> int:
        return len(self._baselines)

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._baselines

    def items(self) -> Iterable[tuple[str, Baseline]]:
        """Return (question id, baseline) pairs in the order of the file."""
        return self._baselines.items()

    def baseline(self, question_id: str) -> Baseline:
        """Return naive RAG's answer to this question.

        Raises:
            NotFound: the file has no entry for it.
        """
        try:
            return self._baselines[question_id]
        except KeyError:
            raise NotFound(
                f"no naive-RAG baseline for question {question_id!r}; build the baseline file again"
            ) from None

    def rag_correct(self, question_id: str) -> bool:
        """Return whether naive RAG answered this question correctly.

        Raises:
            NotFound: the file has no entry for it.
        """
        return self.baseline(question_id).correct

    def require(self, **expected: str | float | None) -> None:
        """Check fields of the version; a value that is unknown to the file or to the caller (None) is not compared.

        Raises:
            Conflict: the baselines were made for another setup; names every difference.
        """
        known, unknown = asdict(self.version), asdict(UNKNOWN_VERSION)
        differences = [
            f"{name} {known[name]!r}, not {value!r}"
            for name, value in expected.items()
            if value is not None and known[name] != unknown[name] and known[name] != value
        ]
        if differences:
            raise Conflict(f"the naive-RAG baselines were made with {', and with '.join(differences)}")

    def require_questions(self, questions: Iterable[Question]) -> None:
        """Check that every question has a baseline and is unchanged since the baseline was made.

        Raises:
            NotFound: some have none; names the first ones.
            Conflict: the texts, options or golden answers of some changed; names the first ones.
        """
        missing, changed = [], []
        for question in questions:
            baseline = self._baselines.get(question.id)
            if baseline is None:
                missing.append(question.id)
            elif not baseline.is_of(question):
                changed.append(question.id)
        # Missing ones first: they need the file to be built again, which brings the changed ones up to date as well.
        if missing:
            raise NotFound(f"no naive-RAG baseline for question {_first_of(missing)}")
        if changed:
            raise Conflict(
                f"the naive-RAG baselines were made for other texts or golden answers of question {_first_of(changed)}"
            )

    @classmethod
    def load(cls, path: Path) -> "BaselineCache":
        """Read a baseline file.

        Raises:
            NotFound: there is no such file.
            InvalidRequest: it is not a baseline file of this format.
        """
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise InvalidRequest(f"{path} has format {content['format']!r}, not {FORMAT!r}")
            # The key of a dict comprehension is evaluated before the value, so the id is gone when the rest becomes a
            # Baseline.
            baselines = {entry.pop("question_id"): Baseline(**entry) for entry in content["entries"]}
            return cls(BaselineVersion(**content["version"]), baselines)
        except FileNotFoundError as error:
            raise NotFound(f"there is no baseline file {path}; build it with the evaluator") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidRequest(f"{path} is not a naive-RAG baseline file: {error}") from error

    def save(self, path: Path) -> None:
        """Write the file atomically: a reader sees the old file or the new one, never a part."""
        content = {
            "format": FORMAT,
            "version": asdict(self.version),
            "entries": [{"question_id": name, **asdict(baseline)} for name, baseline in self._baselines.items()],
        }
        atomic_write(path, json.dumps(content, ensure_ascii=False, indent=1))


def _first_of(names: Sequence[str]) -> str:
    named = ", ".join(repr(name) for name in names[:MOST_NAMED])
    return named + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
