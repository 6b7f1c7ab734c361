"""Lets questions rest that the policy always or never solves, so that rollouts go to those it can learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from pydantic import Field, NonNegativeInt, PositiveInt

from searchrl.platform.settings import Section


class CurriculumSettings(Section):
    """Which questions rest, and for how long. A visit is a question's turn, once per epoch of its set."""

    window: NonNegativeInt = Field(
        default=0, description="Visits in a row with success always or never, after which a question rests; 0: none do."
    )
    # A question that is only almost always solved comes back soon, and one that the policy has outgrown is seldom
    # rolled out: rests of 1, 2, 4 and then 8 visits.
    longest_rest: PositiveInt = Field(
        default=8, description="Most visits that a rest lasts; the first is one, and each doubles the last."
    )
    min_active: float = Field(
        default=0.5, gt=0, le=1, description="Share of the questions that do not rest, whatever their success."
    )

    def describe(self) -> str:
        """Describe the curriculum for the identity of a run."""
        if not self.window:
            return "none"
        return f"window {self.window}, rests up to {self.longest_rest}, {self.min_active:g} active"


@dataclass(slots=True)
class _Record:
    """One question: visits in a row with the same extreme success, visits that it still rests, and its last rest."""

    streak: int = 0  # positive: always solved, negative: never
    left: int = 0
    rest: int = 0


class Curriculum:
    """The measured success of the questions of a run, and which of them rest.

    It is changed when a question's turn comes (``skips``), and at the end of a step by the groups that were trained or
    replaced, in the order of their ids. Neither depends on which groups finish first, so ``state`` resumes it exactly.
    """

    def __init__(self, settings: CurriculumSettings, questions: int) -> None:
        self._settings = settings
        self._most_resting = int((1 - settings.min_active) * questions + 1e-9)  # 1 - 0.9 is a little less than 0.1
        self._records: dict[str, _Record] = {}  # of questions that were not solved now and then at their last visit
        self._measured: list[tuple[int, str, Sequence[float]]] = []  # since the last step
        self.resting = 0

    def skips(self, question_id: str) -> bool:
        """Take the question's turn; True if it rests."""
        record = self._records.get(question_id)
        if record is None or not record.left:
            return False
        record.left -= 1
        self.resting -= not record.left
        return True

    def measure(self, group_id: int, question_id: str, successes: Sequence[float]) -> None:
        """Keep the result of a group until the step ends."""
        self._measured.append((group_id, question_id, successes))

    def end_step(self) -> None:
        """Observe the groups that were measured, in the order of their ids."""
        for _, question_id, successes in sorted(self._measured, key=itemgetter(0)):
            self.observe(question_id, successes)
        self._measured = []

    def observe(self, question_id: str, successes: Sequence[float]) -> None:
        """Record the success of each scored rollout of a visit, 0 to 1; nothing if none was measured."""
        if not self._settings.window or not successes:
            return
        sign = 1 if min(successes) >= 1 else -1 if max(successes) <= 0 else 0
        record = self._records.get(question_id)
        if not sign:
            # Groups of an earlier visit may be trained while the question rests already: it teaches again.
            if record is not None:
                self.resting -= record.left > 0
                del self._records[question_id]
            return
        record = self._records.setdefault(question_id, _Record())
        if record.streak * sign < 0:  # from never to always, or back
            record.streak = record.rest = 0
        record.streak += sign
        if abs(record.streak) >= self._settings.window and not record.left and self.resting < self._most_resting:
            record.rest = min(max(1, 2 * record.rest), self._settings.longest_rest)
            record.left = record.rest
            self.resting += 1

    def state(self) -> dict[str, tuple[int, int, int]]:
        """Return what a resumed run needs."""
        return {name: (one.streak, one.left, one.rest) for name, one in self._records.items()}

    def restore(self, state: Mapping[str, Sequence[int]]) -> None:
        """Continue from a checkpoint."""
        self._records = {name: _Record(*values) for name, values in state.items()}
        self.resting = sum(record.left > 0 for record in self._records.values())
