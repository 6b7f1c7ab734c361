"""Tells from the validations of a run which version is best, and when the run ends early."""

from collections.abc import Iterable, Mapping

from services.trainer.validation.settings import ValidationSettings

PREFIX = "validation_"
"""Begins the name of every number of a validation in ``metrics.jsonl``; lines of steps have no such name."""
QUESTION_SET = f"{PREFIX}set"


def is_validation(line: Mapping[str, object]) -> bool:
    """Whether the line of ``metrics.jsonl`` is that of a validation, not of a training step."""
    return QUESTION_SET in line


class ValidationHistory:
    """The validations of one run on one set of questions, by step.

    Args:
        question_set: fingerprint of the questions; empty: those of the newest validation.
    """

    def __init__(self, settings: ValidationSettings, question_set: str = "") -> None:
        self._field = f"{PREFIX}{settings.metric}"
        self._patience = settings.patience
        self._min_improvement = settings.min_improvement
        self._set = question_set
        self._values: dict[int, float] = {}

    def restore(self, lines: Iterable[Mapping[str, object]]) -> None:
        """Add the validations among the lines of ``metrics.jsonl``, but not those on other questions."""
        found = [line for line in lines if is_validation(line)]
        question_set = self._set or (found[-1][QUESTION_SET] if found else "")
        for line in found:
            step, value = line.get("step"), line.get(self._field)
            if line[QUESTION_SET] == question_set and isinstance(step, int) and isinstance(value, (int, float)):
                self.add(step, float(value))

    def add(self, step: int, value: float) -> None:
        """Add the validation of the version that ``step`` trained."""
        self._values[step] = value

    def __contains__(self, step: int) -> bool:
        return step in self._values

    @property
    def first_step(self) -> int | None:
        """The step with which later ones are compared; None before the first validation."""
        return min(self._values, default=None)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best version; of equals the earliest."""
        if not self._values:
            return None
        step = max(sorted(self._values), key=lambda step: self._values[step])
        return step, self._values[step]

    @property
    def without_improvement(self) -> int:
        """Validations since the last improvement."""
        return self._count()[0]

    @property
    def deciding_step(self) -> int | None:
        """The step whose validation exhausted the patience; None if none did."""
        return self._count()[1]

    def ends_run(self, step: int) -> bool:
        """Whether the run ends early after ``step``: the one beside which the deciding validation ran."""
        deciding = self.deciding_step
        return deciding is not None and step > deciding

    def _count(self) -> tuple[int, int | None]:
        # patience 2, min_improvement .01:  .70  .74  .745  .748  ->  the last two do not exceed .74 by more than .01
        in_a_row, deciding, improved = 0, None, None
        for step in sorted(self._values):
            value = self._values[step]
            if improved is None or value > improved + self._min_improvement:
                improved, in_a_row = value, 0
                continue
            in_a_row += 1
            if self._patience and in_a_row == self._patience and deciding is None:
                deciding = step
        return in_a_row, deciding


def find_last_step(settings: ValidationSettings, steps: int, lines: Iterable[Mapping[str, object]]) -> int:
    """Return the step after which a run with these lines is finished: the planned one, or an earlier one."""
    history = ValidationHistory(settings)
    history.restore(lines)
    deciding = history.deciding_step
    return steps if deciding is None else min(steps, deciding + 1)


def describe_validation(line: Mapping[str, float | int | str | bool | None], metric: str) -> str:
    """Describe the line of a validation in one sentence, for the log; ``searchrl runs status`` finds it there."""
    text = f"validation of step {line['step']}: {metric} {line[PREFIX + metric]:.3f}"
    text += f" on {line[f'{PREFIX}questions']} questions"
    if f"{PREFIX}difference" in line:
        difference, p_value = line[f"{PREFIX}difference"], line[f"{PREFIX}p_value"]
        text += f", {difference:+.3f} since step {line[f'{PREFIX}start_step']} (p {p_value:.3g})"
    return f"{text}; best {line[f'{PREFIX}best']:.3f} at step {line[f'{PREFIX}best_step']}"
