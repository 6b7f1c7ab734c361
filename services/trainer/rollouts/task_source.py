"""Draws the questions of a run and numbers their groups."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from searchrl.datasets.question_file import dataset_fingerprint
from searchrl.domain.question import Question
from services.trainer.rollouts.curriculum import Curriculum, CurriculumSettings
from services.trainer.rollouts.mixture import Mixture, QuestionSource


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A question that is drawn to be rolled out. ``group_id`` numbers the groups of a run from 0 and is unique.

    ``source`` names the question's set in a mixture, and ``epoch`` counts that set's epochs.
    """

    group_id: int
    epoch: int
    question: Question
    source: str = ""

    @property
    def name(self) -> str:
        """The question's id and the group's, for messages."""
        return f"{self.question.id}@{self.group_id}"


class TaskSource:
    """Draws questions without replacement, in a fresh order each epoch; each set of a mixture has its own epochs.

    The question of group g is a function of (questions, weights, seed, g) alone, so the next id and the curriculum are
    the complete state. With 100 questions, group 230 is position 30 in the order of epoch 2.
    """

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        if not questions:
            raise ValueError("a task source needs at least one question")
        self.questions = tuple(questions)
        self._sources = [_Epochs(QuestionSource("", self.questions), str(seed))]
        self._mixture = Mixture([1])
        self.shares = ""
        self.curriculum = Curriculum(CurriculumSettings(), len(self.questions))
        self.next_group_id = 0
        self.fingerprint = dataset_fingerprint(self.questions)

    @classmethod
    def mix(cls, sources: Sequence[QuestionSource], seed: int, curriculum: CurriculumSettings | None = None) -> Self:
        """Build the source of a mixture. That of a single set draws what the same questions alone would."""
        mixed = cls([question for source in sources for question in source.questions], seed)
        mixed.curriculum = Curriculum(curriculum or CurriculumSettings(), len(mixed))
        # With one seed, sets of equal size would have equal orders: translations of a question would come together.
        seeds = [str(seed)] if len(sources) == 1 else [f"{seed}/{source.name}" for source in sources]
        mixed._sources = [_Epochs(source, own) for source, own in zip(sources, seeds, strict=True)]
        mixed._mixture = Mixture([source.weight for source in sources])
        if len(sources) > 1:
            counts = zip(sources, mixed._mixture.counts, strict=True)
            mixed.shares = ", ".join(f"{count} {source.name} ({len(source.questions)})" for source, count in counts)
        return mixed

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def gold_passages(self) -> list[tuple[str, ...]]:
        """Gold passages of each question."""
        return [question.gold_passage_ids for question in self.questions]

    def next(self) -> PromptGroup:
        """Draw the next group; the ids of questions that rest are passed over."""
        while True:
            group = self.group(self.next_group_id)
            self.next_group_id += 1
            if not self.curriculum.skips(group.question.id):
                return group

    def group(self, group_id: int) -> PromptGroup:
        """Return the group of that id, whether or not it was drawn before: lost groups are rolled out again."""
        index, earlier = self._mixture.locate(group_id)
        drawn = self._sources[index]
        epoch, question = drawn.find(earlier)
        return PromptGroup(group_id, epoch, question, drawn.source.name)


class _Epochs:
    """The order in which the questions of one set are drawn."""

    def __init__(self, source: QuestionSource, seed: str) -> None:
        self.source = source
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def find(self, number: int) -> tuple[int, Question]:
        """Return the epoch and the question of this set's draw of that number, from 0."""
        epoch, position = divmod(number, len(self.source.questions))
        return epoch, self.source.questions[self._epoch_order(epoch)[position]]

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self.source.questions)))
            # ``random`` hashes a string seed with SHA-512, so the order is the same in every process. One epoch is
            # cached: two alternate only while lost groups of the earlier one start again.
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
