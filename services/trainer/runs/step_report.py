"""Renders a step for people: the line of the log, what its time was spent on, and some of its trajectories."""

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

from searchrl.domain.trajectory import Reward
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.trackers.base import Sample

CELL_CHARACTERS = 4000
"""Longest text of a sample: a table is for reading; complete texts are in ``trajectories/``."""
RECENT_STEPS = 10  # the pause of an outage, or the slow first step, must not move their median
SHOWN = ("reward", "success", "answer_in_context")
PARTS = ("rollouts", "retriever", "reward", "update", "validation", "push", "checkpoint")


def split_waiting(seconds: float, groups: Sequence[Group]) -> dict[str, float]:
    """Divide the time for which a step waited for its rollouts among sampling, the retriever and the reward.

    Rollouts run at the same time, so the time is divided in proportion to what they spent in total.
    """
    sampling = searching = scoring = 0.0
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        scoring += rollout.reward_seconds
        for turn in rollout.trajectory.turns if rollout.trajectory else ():
            sampling += turn.generate_seconds
            searching += turn.search_seconds
    total = sampling + searching + scoring
    if total <= 0:
        return {"retriever": 0.0, "reward": 0.0}
    return {"retriever": seconds * searching / total, "reward": seconds * scoring / total}


class StepProgress:
    """Writes the line of a step, with the time that the rest of the run will take."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def describe(self, line: Mapping[str, object]) -> str:
        """Return the line of a step; call it once for each step, in order."""
        step, seconds = int(read_number(line, "step")), read_number(line, "seconds")
        self._recent.append(seconds)
        left = median(self._recent) * (self._total - step)
        numbers = [f"{name.replace('_', ' ')} {read_number(line, name):.3f}" for name in SHOWN if name in line]
        spent = _describe_parts(line)
        return (
            f"step {step} of {self._total}: {', '.join(numbers) or 'no rewards'}, {seconds:.1f} s ({spent}), "
            f"{describe_duration(left)} left"
        )


def split_seconds(line: Mapping[str, object]) -> dict[str, float]:
    """Return what the time of a step's line was spent on, by ``PARTS``; those of the rollouts do not overlap."""
    spent = {name: read_number(line, f"seconds_{'publish' if name == 'push' else name}") for name in PARTS}
    spent["rollouts"] = max(0.0, spent["rollouts"] - spent["retriever"] - spent["reward"])  # never -0.0 by rounding
    return spent


def _describe_parts(line: Mapping[str, object]) -> str:
    spent = split_seconds(line)
    if "seconds_validation" not in line:
        del spent["validation"]
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())


def describe_duration(seconds: float) -> str:
    """Write a duration in hours and minutes, or shorter."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 2 else f"{seconds:.0f} s"


def read_number(line: Mapping[str, object], name: str) -> float:
    """Return a number of a line; 0 if it has none of this name."""
    value = line.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def choose_samples(groups: Sequence[Group], count: int) -> tuple[Sample, ...]:
    """Choose trajectories to read: of each group the best and the worst, until there are ``count``."""
    chosen: list[Sample] = []
    for group in groups:
        ended = [rollout for rollout in group.rollouts if rollout.trajectory is not None]
        ended.sort(key=lambda rollout: rollout.value if rollout.value is not None else float("-inf"))
        chosen += [_to_sample(group, rollout) for rollout in (ended[-1:] + ended[:1] if len(ended) > 1 else ended)]
    return tuple(chosen[:count])


def _to_sample(group: Group, rollout: Rollout) -> Sample:
    trajectory, outcome = rollout.trajectory, rollout.outcome
    assert trajectory is not None
    reason = "scored" if isinstance(outcome, Reward) else f"{type(outcome).__name__}: {outcome.reason}"
    return Sample(
        question=_cut(group.prompt.question.text),
        turns=tuple(_cut(turn.text) for turn in trajectory.turns),
        documents=tuple(_cut(f"{passage.title} [{passage.id}]") for passage in trajectory.documents),
        answer=_cut(trajectory.answer or ""),
        reward=rollout.value,
        outcome=_cut(reason),
    )


def _cut(text: str) -> str:
    return text if len(text) <= CELL_CHARACTERS else f"{text[:CELL_CHARACTERS]} ..."
