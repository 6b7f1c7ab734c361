"""What is an evaluation run, and when are two requests the same run?"""

from dataclasses import asdict, dataclass
from enum import StrEnum

from searchrl.errors import InvalidRequest


class RunState(StrEnum):
    """Values of ``EvaluationRun.state``. A failed run keeps its rows and continues when asked for again."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


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
        """What the column is called."""
        return self.label or self.method


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a client asks for.

    Attributes:
        run_id: chosen by the client, so that asking twice is harmless.
        questions: the question file as the evaluator sees it.
        limit: number of questions, from the start of the file; 0 for all.
        concurrency: episodes at once; 0 for the evaluator's default. Not part of the run's identity.
        controls: add closed book, oracle documents and a random retriever, and look for gold passages that are missing.
        allow_unscored: accept questions without golden answers; they get no correctness.
        keep_trajectories: store the whole trajectory of every episode.
    """

    run_id: str
    questions: str
    methods: tuple[MethodSpec, ...]
    limit: int = 0
    concurrency: int = 0
    controls: bool = False
    allow_unscored: bool = False
    keep_trajectories: bool = False

    def __post_init__(self) -> None:
        if not self.run_id or len(self.run_id) > 200 or not self.run_id.isprintable() or "/" in self.run_id:
            raise InvalidRequest("run_id must be 1 to 200 printable characters without a slash")
        if not self.methods:
            raise InvalidRequest("name at least one answering method")
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidRequest(f"labels must differ; used twice: {', '.join(twice)}")
        if self.limit < 0 or self.concurrency < 0:
            raise InvalidRequest("limit and concurrency must not be negative")

    @property
    def identity(self) -> dict[str, object]:
        """What two requests must share to be the same run."""
        settings = asdict(self)
        del settings["concurrency"]
        return settings


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store knows it.

    Attributes:
        columns: the methods that are run: those of the spec, and the controls that the generator serves.
        created, finished: ISO 8601 in UTC.
    """

    spec: RunSpec
    columns: tuple[MethodSpec, ...]
    questions_sha256: str
    total_questions: int
    state: RunState = RunState.RUNNING
    index_generation: str = ""
    error: str = ""
    created: str = ""
    finished: str = ""
