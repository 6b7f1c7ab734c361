"""Which question is rolled out next, and which group does a rollout belong to?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.datasets.question_file import dataset_fingerprint
from searchrl.domain.question import Question


@dataclass(frozen=True, slots=True)
class TaskVisit:
    """One use of a question: its rollouts form a group. ``number`` counts all visits of a run and is unique."""

    number: int
    epoch: int
    question: Question

    @property
    def group_id(self) -> str:
        """Unique in a run, also when questions have equal texts or are visited again."""
        return f"{self.question.id}@{self.number}"


class TaskSource:
    """Draws questions without replacement, in a fresh order each epoch.

    Which question visit v gets is a function of (questions, seed, v) alone, so the whole state is the next number.
    """

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        if not questions:
            raise ValueError("a task source needs at least one question")
        self._questions = tuple(questions)
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])
        self.next_number = 0
        self.fingerprint = dataset_fingerprint(self._questions)

    def __len__(self) -> int:
        return len(self._questions)

    def next(self) -> TaskVisit:
        """The next visit."""
        visit = self.visit(self.next_number)
        self.next_number += 1
        return visit

    def visit(self, number: int) -> TaskVisit:
        """The visit of that number, whether or not it was drawn before."""
        epoch, position = divmod(number, len(self._questions))
        return TaskVisit(number, epoch, self._questions[self._epoch_order(epoch)[position]])

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self._questions)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
