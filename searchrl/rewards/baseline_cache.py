"""Did naive RAG answer this training question right? A file of baselines, made once, read by the trainer.

Gain Beyond RAG compares a rollout with naive RAG on the same question. The evaluator answers every training question
with naive RAG once (``python -m services.evaluator.build_baseline``) and writes this file; the trainer reads it:

    baselines = BaselineCache.load(path)
    baselines.require(questions_sha256=..., index_generation=..., top_k=3)     # at start: refuse a stale file
    baselines.require_questions(question_ids)                                  # at start: name what is missing
    reward = gain_beyond_rag(correct, baselines.rag_correct(question.id))      # per rollout

A baseline belongs to one question file, index generation, mode, k, generator, prompt and judge; with another of these
it is a number about something else. A missing entry is an error, never a wrong or a zero-shot answer in its place.
The file is

    {"format", "version": {...}, "entries": [{"question_id", "question", "source", "answer", "correct", "exact_match"}]}
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from searchrl.errors import Conflict, InvalidRequest, NotFound

FORMAT = "searchrl-rag-baseline-1"
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class BaselineVersion:
    """What the baselines hold for. Empty, 0 or None: not known, as in files imported from s3.

    Attributes:
        mode: retrieval mode asked for; empty also for the index's default.
        template_hash: of the generator's prompt.
        max_context_tokens, max_answer_tokens, temperature: the generator's.
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
    """Naive RAG's answer to one question. ``source`` and ``question`` are s3's keys of it."""

    question: str
    answer: str
    correct: bool
    exact_match: bool
    source: str = ""


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
        """(question id, baseline) in the order of the file."""
        return self._baselines.items()

    def baseline(self, question_id: str) -> Baseline:
        """Naive RAG on this question.

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
        """Was naive RAG right?

        Raises:
            NotFound: the file has no entry for it.
        """
        return self.baseline(question_id).correct

    def require(self, **expected: str | float) -> None:
        """Check fields of the version; those of an import that are not known pass.

        Raises:
            Conflict: the baselines were made for something else.
        """
        known = asdict(self.version)
        for name, value in expected.items():
            if known[name] not in ("", 0, None) and known[name] != value:
                raise Conflict(
                    f"the naive-RAG baselines were made with {name} {known[name]!r}, not {value!r}; build them again"
                )

    def require_questions(self, question_ids: Iterable[str]) -> None:
        """Check that every question has a baseline.

        Raises:
            NotFound: some have none; names the first ones.
        """
        missing = [name for name in question_ids if name not in self._baselines]
        if missing:
            named = ", ".join(repr(name) for name in missing[:MOST_NAMED])
            more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
            raise NotFound(f"no naive-RAG baseline for question {named}{more}; build the baseline file again")

    @classmethod
    def load(cls, path: Path) -> "BaselineCache":
        """Read a baseline file.

        Raises:
            NotFound: there is no such file.
            InvalidRequest: it is not a baseline file of this format.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise InvalidRequest(f"{path} has format {content['format']!r}, not {FORMAT!r}")
            baselines = {entry.pop("question_id"): Baseline(**entry) for entry in content["entries"]}
            return cls(BaselineVersion(**content["version"]), baselines)
        except FileNotFoundError as error:
            raise NotFound(f"there is no baseline file {path}; build it with the evaluator") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidRequest(f"{path} is not a naive-RAG baseline file: {error}") from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": FORMAT,
            "version": asdict(self.version),
            "entries": [{"question_id": name, **asdict(baseline)} for name, baseline in self._baselines.items()],
        }
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        temporary.replace(path)
