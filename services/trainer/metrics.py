"""Defines every metric that the trainer exports. Names and units are public: dashboards query them."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from searchrl.domain.trajectory import NO_REWARD
from searchrl.errors import ServiceError
from services.trainer.engines.base import PushReport
from services.trainer.rollouts.group import Rollout

# from a cached search to a rollout that waits out an outage or a long queue
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# -1 and 2 are the extreme gains of gain_beyond_rag; -0.3 is a wrong answer with the default malformed penalty; 0.85 and
# 0.95 are a correct answer with three documents and with one, at the default document cost
REWARDS: Final = (-1.0, -0.5, -0.3, 0.0, 0.25, 0.5, 0.75, 0.85, 0.95, 1.0, 2.0)
# turns and searches: every small number has a bucket, since most rollouts have only a few
COUNTS: Final = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16)

LINE_GAUGES: Final = {  # field of a step's line -> metric name and help
    "step": ("searchrl_trainer_step", "Training steps finished."),
    "policy_version": ("searchrl_trainer_policy_version", "Version of the policy that the engines serve."),
    "reward": ("searchrl_trainer_step_reward", "Mean reward of the last step."),
    "group_reward_std": (
        "searchrl_trainer_group_reward_std",
        "Mean over groups of the standard deviation of their rewards.",
    ),
    "seconds": (
        "searchrl_trainer_last_step_duration_seconds",
        "Time from the end of the previous step to that of the last one.",
    ),
    "loss": ("searchrl_trainer_loss", "Loss of the last step."),
    "grad_norm": ("searchrl_trainer_grad_norm", "Largest gradient norm of the last step, before clipping."),
    "learning_rate": ("searchrl_trainer_learning_rate", "Learning rate of the last optimizer step."),
    "entropy": ("searchrl_trainer_entropy", "Entropy of the policy in nats per sampled token."),
    "kl_reference": ("searchrl_trainer_kl_reference", "KL to the reference policy in nats per token."),
    "mismatch_kl": ("searchrl_trainer_mismatch_kl", "KL between sampling and training policy in nats per token."),
    "logprob_mismatch": (
        "searchrl_trainer_logprob_mismatch",
        "Engine against learner at equal weights, nats per token.",
    ),
    "clip_fraction": ("searchrl_trainer_clipped_ratio", "Share of tokens whose ratio was clipped."),
    "masked_fraction": (
        "searchrl_trainer_importance_masked_ratio",
        "Share of tokens that the bounds on the importance ratio masked.",
    ),
    "logprob_drop": (
        "searchrl_trainer_logprob_drop",
        "Drop of the log-probability of tokens with a positive advantage, nats per token.",
    ),
    "success": ("searchrl_trainer_success_ratio", "Share of rollouts with a correct answer."),
    "documents": ("searchrl_trainer_documents", "Mean number of documents that reach the generator."),
    "well_formed": ("searchrl_trainer_well_formed_ratio", "Share of rollouts that followed the protocol."),
    "staleness": ("searchrl_trainer_staleness_versions", "Age of the oldest trained token in policy versions."),
    "collapse_warning": ("searchrl_trainer_collapse_warning", "1 while the policy seems to collapse."),
    "time": (
        "searchrl_trainer_last_step_timestamp_seconds",
        "When the last step ended; before the first one, when the process started.",
    ),
}


class TrainerMetrics:
    """Built once in the wiring, with a private registry in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self._gauges = {name: Gauge(metric, text, registry=registry) for name, (metric, text) in LINE_GAUGES.items()}
        self._add_rollouts(registry)
        self._add_run(registry)

    def _add_rollouts(self, registry: CollectorRegistry) -> None:
        self.rollouts = Counter(
            "searchrl_trainer_rollouts", "Rollouts ended.", ["outcome", "stop_reason"], registry=registry
        )
        self.groups = Counter("searchrl_trainer_groups", "Groups ended.", ["state"], registry=registry)
        self.infra_failures = Counter(
            "searchrl_trainer_infra_failures", "Failed calls to other services, before retries.", ["service", "kind"],
            registry=registry,
        )  # fmt: skip
        self.reward = Histogram("searchrl_trainer_reward", "Rewards of rollouts.", buckets=REWARDS, registry=registry)
        self.turns = Histogram("searchrl_trainer_turns", "Turns per rollout.", buckets=COUNTS, registry=registry)
        self.searches = Histogram(
            "searchrl_trainer_searches", "Searches per rollout.", buckets=COUNTS, registry=registry
        )
        self.rollout_seconds = Histogram(
            "searchrl_trainer_rollout_seconds",
            "Time of a rollout without its reward.",
            buckets=SECONDS,
            registry=registry,
        )
        self.generate_seconds = Histogram(
            "searchrl_trainer_generate_seconds",
            "Time per rollout spent waiting for tokens.",
            buckets=SECONDS,
            registry=registry,
        )
        self.retrieval_seconds = Histogram(
            "searchrl_trainer_retrieval_seconds",
            "Time per rollout spent searching.",
            buckets=SECONDS,
            registry=registry,
        )
        self.reward_seconds = Histogram(
            "searchrl_trainer_reward_seconds", "Time of scoring a rollout.", buckets=SECONDS, registry=registry
        )
        self.sampled_tokens = Counter("searchrl_trainer_tokens", "Tokens of rollouts.", ["kind"], registry=registry)

    def _add_run(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"searchrl_trainer_{name}", text, registry=registry)

        self.phase_seconds = Gauge(
            "searchrl_trainer_step_phase_seconds", "Time of the last step, by phase.", ["phase"], registry=registry
        )
        self.nonfinite_updates = Counter(
            "searchrl_trainer_nonfinite_updates",
            "Optimizer steps skipped: NaN or Inf in gradients.",
            registry=registry,
        )
        self.thread_failures = Counter(
            "searchrl_trainer_thread_failures",
            "Jobs that failed unexpectedly in a thread of their own (learner, finished rollouts).",
            ["owner"],
            registry=registry,
        )
        self.push_seconds = gauge("weight_push_seconds", "Time until the engine served the last weights.")
        self.push_bytes = gauge("weight_push_bytes", "Bytes of the last weights that each server received.")
        self.push_failures = Counter(
            "searchrl_trainer_weight_push_failures",
            "Pushes of weights to one server that failed; it is replaced.",
            registry=registry,
        )
        self.failovers = Counter(
            "searchrl_trainer_engine_failovers",
            "Turns of rollouts that were sampled again on another server.",
            registry=registry,
        )
        self.checkpoint_seconds = gauge("checkpoint_seconds", "Time of the last checkpoint.")
        self.checkpoint_time = gauge("last_checkpoint_timestamp_seconds", "When the last checkpoint was complete.")
        self.resumed_step = gauge("resumed_step", "Step from which this process resumed the run; 0: a new run.")
        self.planned_steps = gauge("planned_steps", "Steps after which the run is finished.")
        self.paused = gauge("paused", "1 while the run is paused.")
        self.groups_in_flight = gauge("groups_in_flight", "Groups whose rollouts run.")
        self.groups_waiting = gauge("groups_waiting", "Finished groups that wait for the learner.")
        self.circuit_breaker_open = gauge(
            "circuit_breaker_open", "1 while dispatch is paused because services fail, else 0."
        )

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
        for started in (self._gauges["time"], self.checkpoint_time):
            started.set(time.time())
        self.paused.set_function(lambda: float(is_paused()))
        self.groups_in_flight.set_function(groups_in_flight)
        self.groups_waiting.set_function(groups_waiting)
        self.circuit_breaker_open.set_function(lambda: float(is_circuit_open()))

    def record_start(self, step: int) -> None:
        """Export the step from which the run continues; 0 for a new run."""
        self.resumed_step.set(step)
        self._gauges["step"].set(step)

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
        """Count one group: trained, zero_variance, stale, underfilled or unscorable."""
        self.groups.labels(state).inc()

    def record_failed_call(self, service: str, error: ServiceError) -> None:
        """Count a failed call to another service."""
        self.infra_failures.labels(service, error.kind.value).inc()

    def record_step(self, line: Mapping[str, object], phase_seconds: Mapping[str, float]) -> None:
        """Export the numbers of the last step."""
        for name, gauge in self._gauges.items():
            value = line.get(name)
            if isinstance(value, (int, float)):
                gauge.set(float(value))
        for phase, seconds in phase_seconds.items():
            self.phase_seconds.labels(phase).set(seconds)
        skipped = line.get("skipped_steps")
        self.nonfinite_updates.inc(skipped if isinstance(skipped, (int, float)) else 0)

    def record_push(self, report: PushReport) -> None:
        """Export one push of weights to the servers of the engine."""
        self.push_seconds.set(report.seconds)
        self.push_bytes.set(report.bytes)
        self.push_failures.inc(report.failures)

    def record_checkpoint(self, seconds: float) -> None:
        """Export how long the last checkpoint took, and when it was complete."""
        self.checkpoint_seconds.set(seconds)
        self.checkpoint_time.set(time.time())
