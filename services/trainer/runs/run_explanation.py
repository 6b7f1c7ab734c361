"""Explains a run in sentences: what it waits for, what it loses, what does not teach it anything, and how it learns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from services.trainer.runs.run_events import find_rollbacks
from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.step_report import describe_duration, read_number, split_seconds
from services.trainer.validation.history import is_validation

RECENT_STEPS = 20
"""Steps that are explained: enough for shares that do not jump, and few enough to describe the run as it is now."""
TREND_STEPS = 10  # as many as the detector of a collapse averages
SLOW = 3.0  # times the median; steps vary by half of it or so with the lengths of their rollouts
STALLED_SECONDS = 60.0  # a short run's steps take milliseconds, and then three medians are no stall
WAITED_FOR = {
    "rollouts": "the engine that samples them; more or faster engines shorten it",
    "retriever": "the retriever; more replicas, its caches or a faster index shorten it",
    "reward": "the frozen LLM of the reward; more replicas or a faster engine of the generator shorten it",
}
VALIDATION_SHARE = 0.2
# ``compares_rollouts`` of these algorithms is false. They are not asked, because importing them takes seconds.
COMPARES_NO_ROLLOUTS = frozenset({"ppo", "reinforce_plus_plus"})
EQUAL_GROUPS = 0.25  # share from which it is worth a sentence: a quarter of all rollouts
MISMATCH_SHARE = 0.5  # of the tolerance above which the run ends


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the run folder says.

    Attributes:
        lines: those of steps and validations in ``metrics.jsonl``.
        events: its other lines.
        settings: ``run.yaml``.
        is_trained: whether a process trains the run now; None if that cannot be found out.
        has_model: whether the final model was exported.
        now: seconds since the epoch.
    """

    folder: str
    lines: Sequence[StepLine]
    settings: Mapping[str, Any]
    is_trained: bool | None
    has_model: bool
    now: float
    events: Sequence[StepLine] = ()

    def setting(self, name: str) -> Any:
        """Return a setting by its dotted name; None if there is none."""
        value: Any = self.settings
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def explain_run(facts: RunFacts) -> list[str]:
    """Return the sentences, the most important topic first; of the steps, the last ``RECENT_STEPS`` count."""
    steps = [line for line in facts.lines if not is_validation(line)]
    if not steps:
        state = "it is starting, or its first step is in progress" if facts.is_trained else "no process trains it"
        return [f"No step of {facts.folder} has ended yet: {state}.", *_describe_rollbacks(facts)]
    recent = steps[-RECENT_STEPS:]
    return [
        *_describe_state(facts, steps),
        *_describe_rollbacks(facts),
        *_describe_time(facts, recent),
        *_describe_slow_step(recent),
        *_describe_lost_work(facts, recent),
        *_describe_learner(facts, recent),
        *_describe_learning(steps),
        *_describe_validation(facts.lines),
    ]


def _describe_state(facts: RunFacts, steps: Sequence[StepLine]) -> Iterator[str]:
    step, total = int(read_number(steps[-1], "step")), facts.setting("steps")
    age = max(0.0, facts.now - read_number(steps[-1], "time"))
    place = f"step {step} of {total}" if total else f"step {step}"
    if facts.has_model:
        yield f"It has ended with {place}; its model is in {facts.folder}/final."
        return
    if facts.is_trained is False:
        yield (
            f"No process trains it: {place} was the last, {describe_duration(age)} ago. "
            f"It continues with: searchrl train --resume {facts.folder}"
        )
        return
    if facts.is_trained is None:
        yield f"{place.capitalize()} ended {describe_duration(age)} ago; whether a process trains it is unknown here."
        return
    usual = median(read_number(line, "seconds") for line in steps[-RECENT_STEPS:])
    if age > max(STALLED_SECONDS, SLOW * usual):
        yield (
            f"It stalls: {place} ended {describe_duration(age)} ago, and a step usually takes {usual:.1f} s. Its log "
            "says if it is paused, or waits for services that are unavailable."
        )
        return
    yield f"It trains: {place} ended {describe_duration(age)} ago."


def _describe_rollbacks(facts: RunFacts) -> Iterator[str]:
    rollbacks = find_rollbacks(facts.events)
    if not rollbacks:
        return
    last, limit = rollbacks[-1], facts.setting("self_repair.rollbacks") or 0
    times = "once" if len(rollbacks) == 1 else f"{len(rollbacks)} times"
    more = f"of at most {limit}" if len(rollbacks) < limit else "and the next trouble ends it"
    yield (
        f"It was rolled back {times}, {more}. The last time at step {last.from_step}, because {last.cause}: it "
        f"returned to step {last.to_step} with a learning rate of {last.learning_rate:g}, and lost "
        f"{last.lost_groups} groups."
    )
    if last.cause != rollbacks[0].cause:
        yield f"The first time it was rolled back because {rollbacks[0].cause}."


def _describe_time(facts: RunFacts, recent: Sequence[StepLine]) -> Iterator[str]:
    seconds = fmean(read_number(line, "seconds") for line in recent)
    splits = [split_seconds(line) for line in recent]
    spent = {name: fmean(split[name] for split in splits) for name in splits[0]}
    total = sum(spent.values())
    if total <= 0:
        return
    shares = {name: value / total for name, value in sorted(spent.items(), key=lambda item: -item[1])}
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.01)
    yield f"A step takes {seconds:.1f} s (mean of the last {len(recent)}): {listed}."
    waiting = sum(shares[name] for name in WAITED_FOR)
    if waiting > 0.5:
        cause = max(WAITED_FOR, key=lambda name: shares[name])
        yield f"The learner waits for rollouts {waiting:.0%} of the time, above all for {WAITED_FOR[cause]}."
    elif shares["validation"] > VALIDATION_SHARE:
        yield (
            f"The step waits for the validation beside it {shares['validation']:.0%} of the time; fewer questions, a "
            "larger validation.every or validation.in_flight shorten it."
        )
    elif shares["update"] > 0.5 and facts.setting("rollouts.max_staleness") == 0:
        yield (
            f"The engine waits for the learner {shares['update']:.0%} of the time; with rollouts.max_staleness=1 both "
            "work at the same time."
        )


def _describe_slow_step(recent: Sequence[StepLine]) -> Iterator[str]:
    usual = median(read_number(line, "seconds") for line in recent)
    slow = [line for line in recent if read_number(line, "seconds") > SLOW * usual > 0]
    if not slow:
        return
    slowest = max(slow, key=lambda line: read_number(line, "seconds"))
    spent = split_seconds(slowest)
    cause = max(spent, key=lambda name: spent[name])
    failed = int(read_number(slowest, "infra_failures"))
    lost = f", and {failed} of its rollouts failed because of services" if failed else ""
    count = "One step was" if len(slow) == 1 else f"{len(slow)} steps were"
    yield (
        f"{count} more than {SLOW:.0f} times as long as usual. The longest was step "
        f"{int(read_number(slowest, 'step'))} with {read_number(slowest, 'seconds'):.1f} s, of which {cause} took "
        f"{spent[cause]:.1f} s{lost}."
    )


def _describe_lost_work(facts: RunFacts, recent: Sequence[StepLine]) -> Iterator[str]:
    rollouts = sum(read_number(line, "rollouts") for line in recent)
    size = facts.setting("rollouts.group_size")
    if not rollouts or not size:
        return
    equal = sum(read_number(line, "zero_variance_groups") for line in recent) / (rollouts / size)
    if equal >= EQUAL_GROUPS and _compares_rollouts(facts):
        known = [read_number(line, "success") for line in recent if "success" in line]
        success = fmean(known) if known else 0.5  # a reward of the user's own need not say what is right
        why = "too hard" if success < 0.2 else "too easy" if success > 0.8 else "too easy or too hard"
        yield f"{equal:.0%} of the groups had equal rewards and taught nothing: their questions are {why}."
    replaced = sum(read_number(line, "replaced_groups") for line in recent)
    if replaced:
        sampled = replaced + rollouts / size
        yield f"{replaced / sampled:.0%} of the sampled groups had equal rewards and were replaced by others."
    for name, what in (
        ("infra_failures", "failed because services were unavailable"),
        ("unscorable", "were refused by services, for reasons that the log names"),
    ):
        count = int(sum(read_number(line, name) for line in recent))
        if count:
            yield f"{count} of {rollouts:.0f} rollouts ({count / rollouts:.1%}) {what}: their work is lost."


def _compares_rollouts(facts: RunFacts) -> bool:
    """Whether groups of equal rewards teach nothing."""
    if facts.setting("algorithm.kind") in COMPARES_NO_ROLLOUTS:
        return False
    return facts.setting("algorithm.advantage") != "reward"


def _describe_learner(facts: RunFacts, recent: Sequence[StepLine]) -> Iterator[str]:
    skipped = sum(read_number(line, "skipped_steps") + read_number(line, "value_skipped_steps") for line in recent)
    if skipped:
        yield f"{skipped:.0f} optimizer steps were skipped, because their gradients were not finite."
    tolerance = facts.setting("engine.logprob_tolerance")
    mismatch = max(read_number(line, "logprob_mismatch") for line in recent)
    # In an asynchronous run the two differ by the updates in between as well, and no tolerance is applied.
    if tolerance and facts.setting("rollouts.max_staleness") == 0 and mismatch > MISMATCH_SHARE * tolerance:
        yield (
            f"Engine and learner differ by up to {mismatch:.2g} nats per token; above {tolerance:g} "
            "(engine.logprob_tolerance) the run ends."
        )


def _describe_learning(steps: Sequence[StepLine]) -> Iterator[str]:
    steps = [line for line in steps if "success" in line]  # a reward of the user's own need not say what is right
    values = [read_number(line, "success") for line in steps]
    if len(values) < 2 * TREND_STEPS:
        return
    means = [fmean(values[end - TREND_STEPS : end]) for end in range(TREND_STEPS, len(values) + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    if steps[-1].get("collapse_warning"):
        last = int(read_number(steps[best + TREND_STEPS - 1], "step"))
        yield (
            f"The policy collapses: success is {means[-1]:.2f} over the last {TREND_STEPS} steps, and was "
            f"{means[best]:.2f} over the {TREND_STEPS} steps to step {last}. Resume from a checkpoint of that time "
            "with a lower learning rate."
        )
    else:
        yield (
            f"Success is {means[-1]:.2f} over the last {TREND_STEPS} steps, after {means[-1 - TREND_STEPS]:.2f} over "
            f"the {TREND_STEPS} before and {means[0]:.2f} over the first."
        )


def _describe_validation(lines: Sequence[StepLine]) -> Iterator[str]:
    validations = [line for line in lines if is_validation(line)]
    if not validations:
        return
    last = validations[-1]
    best, since = (
        int(read_number(last, "validation_best_step")),
        int(read_number(last, "validation_without_improvement")),
    )
    text = f"The best validation is that of step {best} ({read_number(last, 'validation_best'):.3f})"
    yield f"{text}, and {since} since then were not better." if since else f"{text}, the last one."
