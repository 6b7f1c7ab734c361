"""Every metric the trainer exports. Names and units are public: dashboards query them."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from searchrl.domain.outcome import InfraFailure
from searchrl.errors import ServiceError
from services.trainer.rollouts.group import Rollout
from services.trainer.runs.step_summary import PhaseClock

SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
REWARDS: Final = (-1.0, -0.5, -0.3, 0.0, 0.25, 0.5, 0.75, 0.85, 0.95, 1.0, 2.0)
COUNTS: Final = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16)

LINE_GAUGES: Final = {
    "step": ("trainer_step", "Training steps finished."),
    "policy_version": ("trainer_policy_version", "Version of the policy that the engines serve."),
    "loss": ("trainer_loss", "Loss of the last step."),
    "grad_norm": ("trainer_grad_norm", "Largest gradient norm of the last step, before clipping."),
    "learning_rate": ("trainer_learning_rate", "Learning rate of the last optimiser step."),
    "entropy": ("trainer_entropy", "Entropy of the policy in nats per sampled token."),
    "kl_reference": ("trainer_kl_reference", "KL to the reference policy in nats per token."),
    "mismatch_kl": ("trainer_mismatch_kl", "KL between sampling and training policy in nats per token."),
    "logprob_difference": ("trainer_logprob_difference", "Engine against learner at equal weights, nats per token."),
    "clip_fraction": ("trainer_ratio_clipped_fraction", "Share of tokens whose ratio was clipped."),
    "masked_fraction": ("trainer_is_masked_fraction", "Share of tokens that importance bounds masked."),
    "good_logprob_delta": ("trainer_good_logprob_delta", "Change of the log-probability of good tokens."),
    "success": ("trainer_success_ratio", "Share of rollouts with a right answer."),
    "documents": ("trainer_documents", "Mean number of documents that reach the generator."),
    "well_formed": ("trainer_well_formed_ratio", "Share of rollouts that kept the protocol."),
    "staleness": ("trainer_staleness_versions", "Age of the oldest trained token in policy versions."),
    "collapse_warning": ("trainer_collapse_warning", "1 while the policy seems to collapse."),
    "time": ("trainer_last_step_timestamp_seconds", "When the last step ended."),
}


class TrainerMetrics:
    """Built once in the wiring, with a private registry in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self._gauges = {name: Gauge(metric, text, registry=registry) for name, (metric, text) in LINE_GAUGES.items()}
        self.step_seconds = Gauge("trainer_step_seconds", "Time of the last step.", ["phase"], registry=registry)
        self.rollouts = Counter("trainer_rollouts", "Rollouts ended.", ["outcome", "stop_reason"], registry=registry)
        self.groups = Counter("trainer_groups", "Groups ended.", ["state"], registry=registry)
        self.infra_failures = Counter(
            "trainer_infra_failures", "Failed calls to other services, before retries.", ["service", "kind"],
            registry=registry,
        )  # fmt: skip
        self.reward = Histogram("trainer_reward", "Rewards of rollouts.", buckets=REWARDS, registry=registry)
        self.turns = Histogram("trainer_turns", "Turns per rollout.", buckets=COUNTS, registry=registry)
        self.searches = Histogram("trainer_searches", "Searches per rollout.", buckets=COUNTS, registry=registry)
        self.rollout_seconds = Histogram(
            "trainer_rollout_seconds", "Time of a rollout without its reward.", buckets=SECONDS, registry=registry
        )
        self.generate_seconds = Histogram(
            "trainer_generate_seconds", "Time per rollout spent waiting for tokens.", buckets=SECONDS, registry=registry
        )
        self.retrieval_seconds = Histogram(
            "trainer_retrieval_seconds", "Time per rollout spent searching.", buckets=SECONDS, registry=registry
        )
        self.reward_seconds = Histogram(
            "trainer_reward_seconds", "Time of scoring a rollout.", buckets=SECONDS, registry=registry
        )
        self.sampled_tokens = Counter("trainer_tokens", "Tokens of rollouts.", ["kind"], registry=registry)
        self.checkpoint_seconds = Gauge("trainer_checkpoint_seconds", "Time of the last checkpoint.", registry=registry)

    def rollout_ended(self, rollout: Rollout) -> None:
        """Count one rollout."""
        trajectory, outcome = rollout.trajectory, rollout.outcome
        reason = trajectory.stop_reason if trajectory is not None else "none"
        self.rollouts.labels(type(outcome).__name__, reason).inc()
        self.rollout_seconds.observe(rollout.rollout_seconds)
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
        if not isinstance(outcome, InfraFailure):
            self.reward.observe(outcome.value)

    def group_ended(self, state: str) -> None:
        """Count one group: trained, zero_variance, stale or underfilled."""
        self.groups.labels(state).inc()

    def call_failed(self, service: str, error: ServiceError) -> None:
        """Count a failed call to another service."""
        self.infra_failures.labels(service, error.kind.value).inc()

    def step_ended(self, line: Mapping[str, object], clock: PhaseClock) -> None:
        """Show the last step."""
        for name, gauge in self._gauges.items():
            value = line.get(name)
            if isinstance(value, (int, float)):
                gauge.set(float(value))
        for phase, seconds in clock.seconds.items():
            self.step_seconds.labels(phase).set(seconds)

    def checkpoint_saved(self, seconds: float) -> None:
        """Show how long the last checkpoint took."""
        self.checkpoint_seconds.set(seconds)
