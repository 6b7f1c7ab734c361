"""Defines every metric that the trainer exports. Names and units are public: dashboards query them."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from searchrl.domain.trajectory import NO_REWARD
from searchrl.errors import ServiceError
from searchrl.platform.telemetry.metric_table import MetricTable, counter, gauge, histogram
from services.trainer.engines.base import PushReport
from services.trainer.rollouts.group import Rollout

# from a cached search to a rollout that waits out an outage or a long queue
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# -1 and 2 are the extreme gains of gain_beyond_rag; -0.3 is a wrong answer with the default malformed penalty; 0.85 and
# 0.95 are a correct answer with three documents and with one, at the default document cost
REWARDS: Final = (-1.0, -0.5, -0.3, 0.0, 0.25, 0.5, 0.75, 0.85, 0.95, 1.0, 2.0)
# turns and searches: every small number has a bucket, since most rollouts have only a few
COUNTS: Final = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16)

LINE_GAUGES: Final = {  # field of a step's line -> its gauge
    "step": gauge("searchrl_trainer_step", "Training steps finished."),
    "policy_version": gauge("searchrl_trainer_policy_version", "Version of the policy that the engines serve."),
    "reward": gauge("searchrl_trainer_step_reward", "Mean reward of the last step."),
    "group_reward_std": gauge(
        "searchrl_trainer_group_reward_std",
        "Mean over groups of the standard deviation of their rewards.",
    ),
    "seconds": gauge(
        "searchrl_trainer_last_step_duration_seconds",
        "Time from the end of the previous step to that of the last one.",
    ),
    "loss": gauge("searchrl_trainer_loss", "Loss of the last step."),
    "grad_norm": gauge("searchrl_trainer_grad_norm", "Largest gradient norm of the last step, before clipping."),
    "learning_rate": gauge("searchrl_trainer_learning_rate", "Learning rate of the last optimizer step."),
    "value_loss": gauge("searchrl_trainer_value_loss", "Loss of PPO's critic in the last step."),
    "value_explained_variance": gauge(
        "searchrl_trainer_value_explained_variance_ratio",
        "Share of the returns' variance that PPO's critic explains: 1 is perfect, 0 no better than a constant.",
    ),
    "value_grad_norm": gauge(
        "searchrl_trainer_value_grad_norm", "Largest gradient norm of PPO's critic in the last step, before clipping."
    ),
    "entropy": gauge("searchrl_trainer_entropy", "Entropy of the policy in nats per sampled token."),
    "kl_reference": gauge("searchrl_trainer_kl_reference", "KL to the reference policy in nats per token."),
    "mismatch_kl": gauge("searchrl_trainer_mismatch_kl", "KL between sampling and training policy in nats per token."),
    "logprob_mismatch": gauge(
        "searchrl_trainer_logprob_mismatch",
        "Engine against learner at equal weights, nats per token.",
    ),
    "clip_fraction": gauge("searchrl_trainer_clipped_ratio", "Share of tokens whose ratio was clipped."),
    "masked_fraction": gauge(
        "searchrl_trainer_importance_masked_ratio",
        "Share of tokens that the bounds on the importance ratio masked.",
    ),
    "importance_capped_fraction": gauge(
        "searchrl_trainer_importance_capped_ratio", "Share of tokens whose importance weight was capped."
    ),
    "logprob_drop": gauge(
        "searchrl_trainer_logprob_drop",
        "Drop of the log-probability of tokens with a positive advantage, nats per token.",
    ),
    "success": gauge("searchrl_trainer_success_ratio", "Share of rollouts with a correct answer."),
    "documents": gauge("searchrl_trainer_documents", "Mean number of documents that reach the generator."),
    "well_formed": gauge("searchrl_trainer_well_formed_ratio", "Share of rollouts that followed the protocol."),
    "answer_in_context": gauge(
        "searchrl_trainer_answer_in_context_ratio", "Share of rollouts whose documents contain a golden answer."
    ),
    "gold_recall": gauge(
        "searchrl_trainer_gold_recall_ratio", "Share of the gold passages among the documents; 0 without gold passages."
    ),
    "selection_precision": gauge(
        "searchrl_trainer_selection_precision_ratio",
        "Share of the selected documents that are gold passages or contain a golden answer.",
    ),
    "staleness": gauge("searchrl_trainer_staleness_versions", "Age of the oldest trained token in policy versions."),
    "collapse_warning": gauge("searchrl_trainer_collapse_warning", "1 while the policy seems to collapse."),
    "time": gauge(
        "searchrl_trainer_last_step_timestamp_seconds",
        "When the last step ended; before the first one, when the process started.",
    ),
}
SKIPPED_STEPS: Final = {"policy": "skipped_steps", "critic": "value_skipped_steps"}
"""Fields of a step's line by model."""

VALIDATION_GAUGES: Final = {  # field of a validation's line -> its gauge
    "step": gauge("searchrl_trainer_validation_step", "Step whose version was validated last."),
    "validation_success": gauge(
        "searchrl_trainer_validation_success_ratio", "Share of the validation questions with a correct answer, greedy."
    ),
    "validation_reward": gauge("searchrl_trainer_validation_reward", "Mean reward of the last validation."),
    "validation_unscorable": gauge(
        "searchrl_trainer_validation_unscorable", "Questions that services refused in the last validation."
    ),
    "validation_best_step": gauge("searchrl_trainer_validation_best_step", "Step of the best validation."),
    "validation_best": gauge("searchrl_trainer_validation_best", "Value of the best validation."),
    "validation_without_improvement": gauge(
        "searchrl_trainer_validation_without_improvement", "Validations since the last improvement."
    ),
    "validation_difference": gauge(
        "searchrl_trainer_validation_difference", "Difference of the last validation from the first."
    ),
    "validation_difference_low": gauge(
        "searchrl_trainer_validation_difference_low", "Lower bound of its 95 % interval."
    ),
    "validation_difference_high": gauge(
        "searchrl_trainer_validation_difference_high", "Upper bound of its 95 % interval."
    ),
    "validation_p_value": gauge(
        "searchrl_trainer_validation_p_value", "Two-sided p-value of that difference, by questions."
    ),
    "validation_seconds": gauge("searchrl_trainer_validation_duration_seconds", "Time of the last validation."),
}


class TrainerMetrics(MetricTable):
    """Built once in the wiring, with a private registry in tests."""

    rollouts = counter("searchrl_trainer_rollouts_total", "Rollouts ended.", "outcome", "stop_reason")
    validation_rollouts = counter(
        "searchrl_trainer_validation_rollouts_total", "Rollouts of validations ended.", "outcome"
    )
    validation_pending = gauge(
        "searchrl_trainer_validation_pending", "Questions of the running validation that are not scored; 0: none runs."
    )
    groups = counter("searchrl_trainer_groups_total", "Groups ended.", "state")
    infra_failures = counter(
        "searchrl_trainer_infra_failures_total", "Failed calls to other services, before retries.", "service", "kind"
    )
    reward = histogram("searchrl_trainer_reward", "Rewards of rollouts.", buckets=REWARDS)
    turns = histogram("searchrl_trainer_turns", "Turns per rollout.", buckets=COUNTS)
    searches = histogram("searchrl_trainer_searches", "Searches per rollout.", buckets=COUNTS)
    rollout_seconds = histogram(
        "searchrl_trainer_rollout_seconds", "Time of a rollout without its reward.", buckets=SECONDS
    )
    generate_seconds = histogram(
        "searchrl_trainer_generate_seconds", "Time per rollout spent waiting for tokens.", buckets=SECONDS
    )
    retrieval_seconds = histogram(
        "searchrl_trainer_retrieval_seconds", "Time per rollout spent searching.", buckets=SECONDS
    )
    reward_seconds = histogram("searchrl_trainer_reward_seconds", "Time of scoring a rollout.", buckets=SECONDS)
    sampled_tokens = counter("searchrl_trainer_tokens_total", "Tokens of rollouts.", "kind")
    phase_seconds = gauge("searchrl_trainer_step_phase_seconds", "Time of the last step, by phase.", "phase")
    nonfinite_updates = counter(
        "searchrl_trainer_nonfinite_updates_total", "Optimizer steps skipped: NaN or Inf in gradients.", "model"
    )
    rollbacks = counter(
        "searchrl_trainer_rollbacks_total",
        "Returns to an earlier checkpoint, because the policy diverged or collapsed.",
    )
    thread_failures = counter(
        "searchrl_trainer_thread_failures_total",
        "Jobs that failed unexpectedly in a thread of their own (learner, finished rollouts).",
        "owner",
    )
    push_seconds = gauge("searchrl_trainer_weight_push_seconds", "Time until the engine served the last weights.")
    push_bytes = gauge("searchrl_trainer_weight_push_bytes", "Bytes of the last weights that each server received.")
    push_failures = counter(
        "searchrl_trainer_weight_push_failures_total", "Failed attempts to push weights to a server."
    )
    failovers = counter(
        "searchrl_trainer_engine_failovers_total", "Turns of rollouts that were sampled again on another server."
    )
    checkpoint_seconds = gauge(
        "searchrl_trainer_checkpoint_seconds",
        "Time of the last checkpoint: blocking, while the step waited; background, beside the next step.",
        "part",
    )
    checkpoint_time = gauge(
        "searchrl_trainer_last_checkpoint_timestamp_seconds", "When the last checkpoint was complete."
    )
    resumed_step = gauge("searchrl_trainer_resumed_step", "Step from which this process resumed the run; 0: a new run.")
    planned_steps = gauge("searchrl_trainer_planned_steps", "Steps after which the run is finished.")
    tracker_lost_steps = counter(
        "searchrl_trainer_tracker_lost_steps_total",
        "Steps that a tracker does not show because it failed or was too slow.",
        "tracker",
    )
    paused = gauge("searchrl_trainer_paused", "1 while the run is paused.")
    groups_in_flight = gauge("searchrl_trainer_groups_in_flight", "Groups whose rollouts run.")
    groups_waiting = gauge("searchrl_trainer_groups_waiting", "Finished groups that wait for the learner.")
    circuit_breaker_open = gauge(
        "searchrl_trainer_circuit_breaker_open", "1 while dispatch is paused because services fail, else 0."
    )

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._line_gauges = {field: row.build(registry) for field, row in LINE_GAUGES.items()}
        self._validation_gauges = {field: row.build(registry) for field, row in VALIDATION_GAUGES.items()}
        super().__init__(registry)

    def watch(
        self,
        planned_steps: int,
        *,
        is_paused: Callable[[], bool],
        groups_in_flight: Callable[[], int],
        groups_waiting: Callable[[], int],
        is_circuit_open: Callable[[], bool],
    ) -> None:
        """Export the run's state; the functions are called at each scrape."""
        self.planned_steps.set(planned_steps)
        # alerts on their age must not fire before the first step and the first checkpoint
        for started in (self._line_gauges["time"], self.checkpoint_time):
            started.set(time.time())
        self.paused.set_function(lambda: float(is_paused()))
        self.groups_in_flight.set_function(groups_in_flight)
        self.groups_waiting.set_function(groups_waiting)
        self.circuit_breaker_open.set_function(lambda: float(is_circuit_open()))

    def record_start(self, step: int) -> None:
        """Export the step from which the run continues; 0 for a new run."""
        self.resumed_step.set(step)
        self._line_gauges["step"].set(step)

    def record_rollout(self, rollout: Rollout) -> None:
        """Count one rollout."""
        trajectory, outcome = rollout.trajectory, rollout.outcome
        reason = trajectory.stop_reason if trajectory is not None else "none"
        self.rollouts.labels(type(outcome).__name__, reason).inc()
        self.rollout_seconds.observe(rollout.rollout_seconds)
        # Zeros for what never happened would lower the averages in an outage, as if rollouts had become short.
        if trajectory is None:
            return
        self.turns.observe(len(trajectory.turns))
        self.searches.observe(trajectory.searches)
        self.generate_seconds.observe(sum(turn.generate_seconds for turn in trajectory.turns))
        self.retrieval_seconds.observe(sum(turn.search_seconds for turn in trajectory.turns))
        self.reward_seconds.observe(rollout.reward_seconds)
        sampled = sum(trajectory.tokens.mask)
        self.sampled_tokens.labels("sampled").inc(sampled)
        self.sampled_tokens.labels("given").inc(len(trajectory.tokens) - sampled)
        if not isinstance(outcome, NO_REWARD):
            self.reward.observe(outcome.value)

    def record_group(self, state: str) -> None:
        """Count one group: trained, zero_variance, replaced, stale, underfilled, unscorable or rolled_back."""
        self.groups.labels(state).inc()

    def record_failed_call(self, service: str, error: ServiceError) -> None:
        """Count a failed call to another service."""
        self.infra_failures.labels(service, error.kind.value).inc()

    def record_step(self, line: Mapping[str, object], phase_seconds: Mapping[str, float]) -> None:
        """Export the numbers of the last step."""
        _set_gauges(self._line_gauges, line)
        for phase, seconds in phase_seconds.items():
            self.phase_seconds.labels(phase).set(seconds)
        for model, name in SKIPPED_STEPS.items():
            skipped = line.get(name)
            self.nonfinite_updates.labels(model).inc(skipped if isinstance(skipped, (int, float)) else 0)

    def record_rollback(self, step: int, lost_groups: int) -> None:
        """Export the return to the checkpoint of ``step``."""
        self.rollbacks.inc()
        self.groups.labels("rolled_back").inc(lost_groups)
        self._line_gauges["step"].set(step)

    def record_validation(self, line: Mapping[str, object]) -> None:
        """Export the numbers of the last validation."""
        _set_gauges(self._validation_gauges, line)

    def record_validation_rollout(self, rollout: Rollout) -> None:
        """Count one rollout of a validation; those of the training are counted apart."""
        self.validation_rollouts.labels(type(rollout.outcome).__name__).inc()

    def record_push(self, report: PushReport) -> None:
        """Export one push of weights to the servers of the engine."""
        self.push_seconds.set(report.seconds)
        self.push_bytes.set(report.bytes)

    def record_checkpoint(self, blocking_seconds: float, background_seconds: float) -> None:
        """Export how long the last checkpoint took, and when it was complete."""
        self.checkpoint_seconds.labels(part="blocking").set(blocking_seconds)
        self.checkpoint_seconds.labels(part="background").set(background_seconds)
        self.checkpoint_time.set(time.time())


def _set_gauges(gauges: Mapping[str, Gauge], line: Mapping[str, object]) -> None:
    for name, line_gauge in gauges.items():
        value = line.get(name)
        if isinstance(value, (int, float)):
            line_gauge.set(float(value))
