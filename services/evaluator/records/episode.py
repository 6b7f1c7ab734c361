"""Defines the record of one method answering one question."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from searchrl.domain.passage import Passage
from searchrl.domain.provenance import UNKNOWN_PROVENANCE, Provenance
from searchrl.errors import OUTAGE_KINDS

NOT_APPLICABLE = "not_applicable"
"""In place of a failure's kind: the method does not apply to the question, such as the oracle without gold passages."""


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
        passages: every passage that appeared in the answer's events, by id.
        prompt_tokens, completion_tokens: of the generator's call.
        searcher_prompt_tokens, searcher_completion_tokens: of all calls of the searcher.
        context_tokens: tokens of the context handed to the generator.
        seconds: time the generator service needed.
        finish_reason: why the model that wrote the answer stopped; "length" if the answer is cut.
        cut, left_out: ids of the documents that the token budget truncated, or excluded from the prompt.
        trajectory: a serialized ``searchrl.contracts.v1.Trajectory``, empty unless requested.
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
    searcher_prompt_tokens: int = 0
    searcher_completion_tokens: int = 0
    provenance: Provenance = UNKNOWN_PROVENANCE
    finish_reason: str = "stop"
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the answer is right, and which check decided (``span`` or ``judge``); tokens of the judge's calls."""

    correct: bool
    decided_by: str
    judge_version: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Episode:
    """One row of the store.

    ``failure`` is empty for an answered question, else the kind of error that ended it, or ``NOT_APPLICABLE``; such a
    row is part of no mean. If only the judge failed, the answer and its cost are kept and ``is_unjudged`` is set: it is
    judged later, and the answer is not generated again. The scores are None if the question has no golden answers.
    ``finish_reason`` is "length" if the answer is cut, empty if it is unknown; ``cut`` and ``left_out`` are ids of the
    documents that the token budget truncated, or excluded from the prompt.
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
    searcher_prompt_tokens: int = 0
    searcher_completion_tokens: int = 0
    judge_prompt_tokens: int = 0
    judge_completion_tokens: int = 0
    provenance: Provenance = UNKNOWN_PROVENANCE
    is_unjudged: bool = False
    finish_reason: str = ""
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_lost(self) -> bool:
        """Whether an outage cost the answer or its verdict: a later attempt may succeed."""
        return self.failure in OUTAGE_KINDS

    @property
    def is_refused(self) -> bool:
        """Whether the question was refused permanently: an unchanged attempt would be refused again."""
        return bool(self.failure) and self.failure != NOT_APPLICABLE and not self.is_lost
