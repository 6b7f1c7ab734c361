"""Draws the questions of a run and numbers their groups."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.datasets.question_file import dataset_fingerprint
from searchrl.domain.question import Question


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One use of a question; its rollouts form a group. ``number`` counts the visits of a run and is unique."""

    number: int
    epoch: int
    question: Question

    @property
    def group_id(self) -> str:
        """Unique in a run, even if questions have equal texts or are drawn again in a later epoch."""
        return f"{self.question.id}@{self.number}"


class TaskSource:
    """Draws questions without replacement, in a fresh order each epoch.

    The question of visit v is a function of (questions, seed, v) alone, so the next number is the complete state.
    With 100 questions, visit 230 is position 30 in the order of epoch 2.
    """

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        if not questions:
            raise ValueError("a task source needs at least one question")
        self._questions = tuple(questions)
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])
        self.next_group_id = 0
        self.fingerprint = dataset_fingerprint(self._questions)

    def __len__(self) -> int:
        return len(self._questions)

    def next(self) -> PromptGroup:
        """The next visit."""
        visit = self.visit(self.next_group_id)
        self.next_group_id += 1
        return visit

    def visit(self, number: int) -> PromptGroup:
        """The visit of that number, whether or not it was drawn before: lost groups are rolled out again."""
        epoch, position = divmod(number, len(self._questions))
        return PromptGroup(number, epoch, self._questions[self._epoch_order(epoch)[position]])

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self._questions)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
