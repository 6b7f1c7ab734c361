"""Defines the record of one method answering one question."""

from dataclasses import dataclass

from searchrl.domain.answer import NO_ANSWER, Answer, Verdict
from searchrl.errors import OUTAGE_KINDS

NOT_APPLICABLE = "not_applicable"
"""In place of a failure's kind: the method does not apply to the question, such as the oracle without gold passages."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One row of the store.

    ``failure`` is empty for an answered question, else the kind of error that ended it, or ``NOT_APPLICABLE``; such a
    row is part of no mean. If only the judge failed, the answer and its cost are kept and ``is_unjudged`` is set: it is
    judged later, and the answer is not generated again. The scores are None if the question has no golden answers.

    Attributes:
        answer: without its passages, which the store keeps once per run, and without its trajectory.
        trajectory: a serialized ``searchrl.contracts.v1.Trajectory``, empty unless requested; in bytes, because decoded
            lists of tokens take several times the memory, and a report reads all episodes of a run at once.
    """

    label: str
    question_id: str
    answer: Answer = NO_ANSWER
    verdict: Verdict | None = None
    failure: str = ""
    error: str = ""
    exact_match: float | None = None
    f1: float | None = None
    gold_recall: float | None = None
    is_unjudged: bool = False
    trajectory: bytes = b""

    @property
    def correct(self) -> bool | None:
        """Whether the answer is right; None without a verdict."""
        return None if self.verdict is None else self.verdict.correct

    @property
    def is_lost(self) -> bool:
        """Whether an outage cost the answer or its verdict: a later attempt may succeed."""
        return self.failure in OUTAGE_KINDS

    @property
    def is_refused(self) -> bool:
        """Whether the question was refused permanently: an unchanged attempt would be refused again."""
        return bool(self.failure) and self.failure != NOT_APPLICABLE and not self.is_lost
