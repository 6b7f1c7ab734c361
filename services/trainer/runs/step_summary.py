"""Computes the numbers that are reported for one training step, and detects a collapse of the policy."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, pstdev

from searchrl.domain.trajectory import NO_REWARD, InfraFailure, Unscorable
from searchrl.rewards.retrieval_quality import QualityMeter
from services.trainer.algorithms.base import UpdateReport
from services.trainer.rollouts.group import Group, Rollout


class StepTimer:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the context to the phase ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def summarize_rollouts(groups: Sequence[Group]) -> dict[str, float]:
    """Return means over the rollouts that have a reward, and counts of those that have none.

    Without ``success`` if the reward never says whether an answer is right: that is not a success of 0.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [rollout for rollout in rollouts if rollout.trajectory is not None and rollout.value is not None]
    values: dict[str, float] = {
        "rollouts": len(rollouts),
        "infra_failures": sum(isinstance(rollout.outcome, InfraFailure) for rollout in rollouts),
        "unscorable": sum(isinstance(rollout.outcome, Unscorable) for rollout in rollouts),
        "zero_variance_groups": sum(not group.has_variance for group in groups),
    }
    if not scored:
        return values
    return values | {
        "reward": fmean(rollout.value or 0.0 for rollout in scored),
        "group_reward_std": fmean(_reward_std(group) for group in groups),
        **_summarize_success(scored),
        **{f"reward_{name}": fmean(_part(rollout, name) for rollout in scored) for name in _part_names(scored)},
        "searches": fmean(rollout.trajectory.searches for rollout in scored if rollout.trajectory),
        "documents": fmean(len(rollout.trajectory.documents) for rollout in scored if rollout.trajectory),
        "well_formed": fmean(rollout.trajectory.well_formed for rollout in scored if rollout.trajectory),
        "turns": fmean(len(rollout.trajectory.turns) for rollout in scored if rollout.trajectory),
        "tokens": fmean(len(rollout.trajectory.tokens) for rollout in scored if rollout.trajectory),
        "sampled_tokens": fmean(sum(rollout.trajectory.tokens.mask) for rollout in scored if rollout.trajectory),
        **_summarize_retrieval(groups),
        **_summarize_sources(groups),
    }


def _summarize_sources(groups: Sequence[Group]) -> dict[str, float]:
    """Return the figures of each set of a mixture that has groups in this step."""
    values: dict[str, float] = {}
    for name in sorted({group.prompt.source for group in groups} - {""}):
        own = [group for group in groups if group.prompt.source == name]
        scored = [rollout for group in own for rollout in group.rollouts if rollout.value is not None]
        values[f"source/{name}/groups"] = len(own)
        values[f"source/{name}/zero_variance"] = fmean(not group.has_variance for group in own)
        if scored:
            values[f"source/{name}/reward"] = fmean(rollout.value or 0.0 for rollout in scored)
            values |= {f"source/{name}/{key}": value for key, value in _summarize_success(scored).items()}
    return values


def _summarize_retrieval(groups: Sequence[Group]) -> dict[str, float]:
    """Return what the scored rollouts found; a figure that none of their questions defines is left out."""
    qualities = [
        meter.measure(rollout.trajectory)
        for group in groups
        for meter in [QualityMeter(group.prompt.question)]
        for rollout in group.rollouts
        if rollout.trajectory is not None and rollout.value is not None
    ]
    means = {
        "answer_in_context": [one.answer_in_context for one in qualities if one.answer_in_context is not None],
        "gold_recall": [one.gold_recall for one in qualities if one.gold_recall is not None],
    }
    values = {name: fmean(found) for name, found in means.items() if found}
    # Of all documents of the step, not a mean of the rollouts' shares: that of a rollout without any is not defined.
    selected = sum(one.selected or 0 for one in qualities)
    if selected:
        values["selection_precision"] = sum(one.relevant or 0 for one in qualities) / selected
    return values


def summarize_update(report: UpdateReport) -> dict[str, float]:
    """Return the metrics of the losses and optimizer steps of policy and critic."""
    # Several optimizer steps make one line: the largest norm shows a spike that their mean would hide, and the learning
    # rate is that of the last step.
    values = report.loss.metrics
    if report.optim:
        last = report.optim[-1]
        norms = [step.grad_norm for step in report.optim]
        values |= {"grad_norm": max(norms), "learning_rate": last.learning_rate}
        values["skipped_steps"] = float(sum(step.skipped for step in report.optim))
    if report.critic is not None:
        critic = report.critic.loss.metrics
        values |= {
            "value_loss": critic.pop("loss"),
            **critic,
            "value_explained_variance": report.critic.explained_variance,
            "value_grad_norm": max((step.grad_norm for step in report.critic.optim), default=0.0),
            "value_skipped_steps": float(sum(step.skipped for step in report.critic.optim)),
        }
    return values


def measure_staleness(groups: Sequence[Group], version: int) -> int:
    """Return the age of the oldest trained token in policy versions."""
    return max((version - group.oldest_version for group in groups if group.usable), default=0)


def _reward_std(group: Group) -> float:
    rewards = [reward for reward in group.rewards if reward is not None]
    return pstdev(rewards) if rewards else 0.0


def _summarize_success(scored: Sequence[Rollout]) -> dict[str, float]:
    parts = [rollout.outcome.parts for rollout in scored if not isinstance(rollout.outcome, NO_REWARD)]
    judged = [found["correct"] for found in parts if "correct" in found]
    return {"success": fmean(judged)} if judged else {}


def _part_names(rollouts: Sequence[Rollout]) -> list[str]:
    """Names of what went into the rewards, besides whether the answer was correct."""
    named = (rollout.outcome.parts for rollout in rollouts if not isinstance(rollout.outcome, NO_REWARD))
    return sorted({name for parts in named for name in parts} - {"correct"})


def _part(rollout: Rollout, name: str) -> float:
    return 0.0 if isinstance(rollout.outcome, NO_REWARD) else rollout.outcome.parts.get(name, 0.0)


class CollapseDetector:
    """Warns while the moving average of success is below a fraction of its best value so far.

    A policy that learns to give up shows this long before its reward reaches zero.

    Args:
        window: steps of the average; a shorter one warns about noise, a longer one warns later.
        fraction: share of the best average below which it warns.
    """

    def __init__(self, window: int = 10, fraction: float = 0.5) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._fraction = fraction
        self.best = 0.0

    def observe(self, success: float) -> bool:
        """Add one step; True if the policy seems to collapse."""
        self._recent.append(success)
        # An average over fewer steps would be noisy, and a high ``best`` from the first steps would warn for the rest
        # of the run.
        if len(self._recent) < (self._recent.maxlen or 1):
            return False
        average = sum(self._recent) / len(self._recent)
        self.best = max(self.best, average)
        return self.best > 0 and average < self._fraction * self.best

    def restore(self, history: Sequence[float]) -> None:
        """Observe the earlier steps of a resumed run."""
        for success in history:
            self.observe(success)
