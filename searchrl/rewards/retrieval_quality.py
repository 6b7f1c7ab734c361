"""Measures the documents that a searcher gathers: gold recall, and which of them contain a golden answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.rewards.polarity import polarity_of_golden
from searchrl.rewards.span_match import contains_answer


@dataclass(frozen=True, slots=True)
class RetrievalQuality:
    """The figures of one rollout; None for what its question or its protocol does not define.

    Attributes:
        answer_in_context: whether a gathered document contains a golden answer.
        gold_recall: share of the gold passages among the gathered documents.
        selected: documents that the searcher selected.
        relevant: those of them that are gold passages or contain a golden answer.
    """

    answer_in_context: bool | None
    gold_recall: float | None
    selected: int | None
    relevant: int | None


def gold_recall(documents: Sequence[str], gold_ids: Sequence[str]) -> float | None:
    """Share of the gold passages among the documents given to the generator; None if no gold passage is known."""
    if not gold_ids:
        return None
    gold = set(gold_ids)
    return len(gold.intersection(documents)) / len(gold)


def findable_answers(question: Question) -> tuple[str, ...]:
    """Return the golden answers whose occurrence in a document says something.

    "Yes" and "no" occur in any text, and the label of an option ("B") answers nothing outside its question.
    """
    labels = {choice.label for choice in question.choices}
    return tuple(
        answer for answer in question.golden_answers if answer not in labels and polarity_of_golden(answer) is None
    )


class QualityMeter:
    """Measures the rollouts of one question; each document is read once, however many rollouts gather it."""

    def __init__(self, question: Question) -> None:
        self._answers = findable_answers(question)
        self._gold = frozenset(question.gold_passage_ids)
        self._contains: dict[str, bool] = {}  # by passage id

    def measure(self, trajectory: Trajectory) -> RetrievalQuality:
        """Return the figures of one rollout, from the documents that reach the generator."""
        documents = trajectory.documents
        # A protocol without selections (Search-R1) passes on whatever was found: its documents were not chosen.
        selects = any(block.selection is not None for block in trajectory.blocks)
        is_judged = selects and bool(self._answers or self._gold)
        return RetrievalQuality(
            answer_in_context=any(map(self._has_answer, documents)) if self._answers else None,
            gold_recall=gold_recall([passage.id for passage in documents], tuple(self._gold)),
            selected=len(documents) if is_judged else None,
            relevant=sum(map(self._is_relevant, documents)) if is_judged else None,
        )

    def _is_relevant(self, passage: Passage) -> bool:
        return passage.id in self._gold or self._has_answer(passage)

    def _has_answer(self, passage: Passage) -> bool:
        if passage.id not in self._contains:
            self._contains[passage.id] = contains_answer(passage.contents, self._answers)
        return self._contains[passage.id]
