"""Defines an evaluation run: its methods and controls, its request, its state and its record."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from searchrl.errors import InvalidRequest

MAX_METHODS = 64  # columns of one report; each multiplies the number of episodes that one request starts
NAIVE_RAG = "rag"
CLOSED_BOOK = "direct"
ORACLE_DOCUMENTS = "oracle"
RANDOM_RETRIEVER = "random_retriever"
CONTROL_METHODS = (CLOSED_BOOK, ORACLE_DOCUMENTS, RANDOM_RETRIEVER)
"""Methods that show whether a benchmark measures search at all."""
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")


class EvaluationState(StrEnum):
    """Values of ``EvaluationRun.state``. Only a finished run lacks nothing that a retry could add.

    An incomplete run went through all questions, but lost some answers or verdicts to outages; a failed one ended
    early. Both keep their rows and continue when they are requested again.
    """

    RUNNING = "running"
    FINISHED = "finished"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


class EndReason(StrEnum):
    """Values of ``EvaluationRun.reason``: why a run is incomplete or failed; empty otherwise.

    A run that an outage ended may finish when it is requested again. The other reasons require a change: too many
    questions are refused, or the model, index, prompt or judge behind the numbers has changed.
    """

    NONE = ""
    OUTAGE = "outage"
    MISCONFIGURED = "misconfigured"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One column of a report: an answering method with its settings; None leaves a setting to the generator."""

    method: str
    label: str = ""
    temperature: float | None = None
    top_k: int | None = None
    max_searches: int | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The name of the column."""
        return self.label or self.method


def add_controls(methods: Sequence[MethodSpec], served: Sequence[str]) -> tuple[MethodSpec, ...]:
    """The methods, and every control that the generator serves and that is not already among them."""
    # Names as well: a column that is called "oracle" would otherwise get a control of the same label.
    requested = {method.method for method in methods} | {method.name for method in methods}
    controls = [MethodSpec(name) for name in CONTROL_METHODS if name in served and name not in requested]
    return (*methods, *controls)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a client asks for.

    Attributes:
        run_id: chosen by the client, so that a repeated request is harmless.
        questions: path of the question file, as the evaluator sees it.
        limit: number of questions, from the start of the file; 0 for all.
        concurrency: episodes at once; 0 for the evaluator's default. Not part of the run's identity.
        allow_changes: continue if the model, the index or the prompt changes during the run, and report it. Not part of
            the run's identity either.
        controls: add closed book, oracle documents and a random retriever, and look for gold passages that are missing.
        allow_unscored: accept questions without golden answers; they get no correctness.
        keep_trajectories: store the complete trajectory of every episode.
    """

    run_id: str
    questions: str
    methods: tuple[MethodSpec, ...]
    limit: int = 0
    concurrency: int = 0
    controls: bool = False
    allow_unscored: bool = False
    keep_trajectories: bool = False
    allow_changes: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.methods) <= MAX_METHODS:
            raise InvalidRequest(f"name 1 to {MAX_METHODS} answering methods")
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidRequest(f"labels must differ; used twice: {', '.join(twice)}")
        if self.limit < 0 or self.concurrency < 0:
            raise InvalidRequest("limit and concurrency must not be negative")

    @property
    def identity(self) -> dict[str, object]:
        """The settings that must be equal in two requests for the same run."""
        settings = asdict(self)
        del settings["concurrency"], settings["allow_changes"]
        return settings


def check_run_id(run_id: str) -> None:
    """Refuse the id of a new run that would have another meaning in a path or a URL.

    Raises:
        InvalidRequest: it is not 1 to 200 of the characters allowed, or "." or "..".
    """
    if not _RUN_ID.fullmatch(run_id) or run_id in (".", ".."):
        raise InvalidRequest("run_id must be 1 to 200 of the characters A-Z a-z 0-9 . _ - and not '.' or '..'")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store knows it.

    Attributes:
        columns: the methods to run: those of the spec, and the controls that the generator serves.
        error: why the run is incomplete or failed, for a person; ``reason`` is the same for a program.
        provenance: the models, indexes and settings behind the answers so far; see ``ProvenanceGuard.values``.
        created, finished: ISO 8601 in UTC.
    """

    spec: RunSpec
    columns: tuple[MethodSpec, ...]
    questions_sha256: str
    total_questions: int
    state: EvaluationState = EvaluationState.RUNNING
    index_generation: str = ""
    error: str = ""
    reason: EndReason = EndReason.NONE
    provenance: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    created: str = ""
    finished: str = ""
