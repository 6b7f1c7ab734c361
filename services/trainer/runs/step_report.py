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
PARTS = ("rollouts", "retriever", "reward", "update", "push", "checkpoint")


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
        step, seconds = int(_number(line, "step")), _number(line, "seconds")
        self._recent.append(seconds)
        left = median(self._recent) * (self._total - step)
        numbers = [f"{name} {_number(line, name):.3f}" for name in ("reward", "success") if name in line]
        spent = _describe_parts(line)
        return (
            f"step {step} of {self._total}: {', '.join(numbers) or 'no rewards'}, {seconds:.1f} s ({spent}), "
            f"{_describe_duration(left)} left"
        )


def _describe_parts(line: Mapping[str, object]) -> str:
    spent = {name: _number(line, f"seconds_{name}") for name in ("rollouts", "retriever", "reward", "update")}
    spent["rollouts"] -= spent["retriever"] + spent["reward"]
    spent |= {"push": _number(line, "seconds_publish"), "checkpoint": _number(line, "seconds_checkpoint")}
    return ", ".join(f"{name} {spent[name]:.1f}" for name in PARTS)


def _describe_duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 2 else f"{seconds:.0f} s"


def _number(line: Mapping[str, object], name: str) -> float:
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
