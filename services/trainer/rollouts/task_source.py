"""Draws the questions of a run and numbers their groups."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.datasets.question_file import dataset_fingerprint
from searchrl.domain.question import Question


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A question that is drawn to be rolled out. ``group_id`` numbers the groups of a run from 0 and is unique."""

    group_id: int
    epoch: int
    question: Question

    @property
    def name(self) -> str:
        """The question's id and the group's, for messages."""
        return f"{self.question.id}@{self.group_id}"


class TaskSource:
    """Draws questions without replacement, in a fresh order each epoch.

    The question of group g is a function of (questions, seed, g) alone, so the next id is the complete state.
    With 100 questions, group 230 is position 30 in the order of epoch 2.
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

    @property
    def gold_passages(self) -> list[tuple[str, ...]]:
        """Gold passages of each question."""
        return [question.gold_passage_ids for question in self._questions]

    def next(self) -> PromptGroup:
        """Draw the next group."""
        group = self.group(self.next_group_id)
        self.next_group_id += 1
        return group

    def group(self, group_id: int) -> PromptGroup:
        """Return the group of that id, whether or not it was drawn before: lost groups are rolled out again."""
        epoch, position = divmod(group_id, len(self._questions))
        return PromptGroup(group_id, epoch, self._questions[self._epoch_order(epoch)[position]])

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self._questions)))
            # ``random`` hashes a string seed with SHA-512, so the order is the same in every process. One epoch is
            # cached: two alternate only while lost groups of the earlier one start again.
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
