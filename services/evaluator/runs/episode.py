"""What is kept of one method answering one question?"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from searchrl.domain.passage import Passage


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One block of documents: the query, the passages found, and those kept (None: no selection was made)."""

    turn: int
    query: str
    found: tuple[str, ...]
    selected: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What the generator service returned for one question.

    Attributes:
        documents: ids of the passages given to the generator, in order.
        passages: every passage seen on the way, by id.
        context_tokens: tokens of the context handed to the generator.
        seconds: time the generator service needed.
        trajectory: a serialised ``searchrl.contracts.v1.Trajectory``, empty unless asked for.
    """

    answer: str
    documents: tuple[str, ...] = ()
    passages: Mapping[str, Passage] = field(default_factory=dict)
    steps: tuple[SearchStep, ...] = ()
    searches: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    context_tokens: int = 0
    seconds: float = 0.0
    stop_reason: str = ""
    policy_version: str = ""
    trajectory: bytes = b""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is the answer right, and which check decided: ``span`` or ``judge``?"""

    correct: bool
    decided_by: str
    judge_version: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One row of the store.

    ``failure`` is empty for an answered question, else the kind of error that ended it; such a row has no answer and no
    score and enters no mean. The scores are None where the question has nothing to score against.
    """

    label: str
    question_id: str
    failure: str = ""
    error: str = ""
    answer: str = ""
    correct: bool | None = None
    decided_by: str = ""
    judge_version: str = ""
    exact_match: float | None = None
    f1: float | None = None
    gold_recall: float | None = None
    documents: tuple[str, ...] = ()
    steps: tuple[SearchStep, ...] = ()
    searches: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    context_tokens: int = 0
    seconds: float = 0.0
    stop_reason: str = ""
    policy_version: str = ""
    trajectory: bytes = b""
