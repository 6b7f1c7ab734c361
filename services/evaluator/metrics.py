"""Defines every metric that the evaluator exports. Names and units are public: dashboards query them."""

from searchrl.platform.telemetry.metric_table import MetricTable, counter, gauge, histogram
from services.evaluator.records.episode import Episode

# From an answer of a small model (milliseconds) to the default timeout of one answer (120 s).
EPISODE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class EvaluatorMetrics(MetricTable):
    """Built once in the wiring, with a private registry in tests."""

    episodes = counter(
        "searchrl_evaluator_episodes_total",
        "Episodes recorded; outcome is correct, wrong, unscored, not_applicable or the kind of the failure.",
        "outcome",
    )
    episode_seconds = histogram(
        "searchrl_evaluator_episode_duration_seconds",
        "Time the generator service needed to answer.",
        buckets=EPISODE_BUCKETS,
    )
    runs = counter("searchrl_evaluator_runs_total", "Runs ended, by state.", "state")
    runs_in_progress = gauge("searchrl_evaluator_runs_in_progress", "Runs in progress.")
    report_seconds = histogram("searchrl_evaluator_report_duration_seconds", "Time to render a report.", "format")

    def observe(self, episode: Episode) -> None:
        """Count one recorded episode."""
        if episode.failure:
            self.episodes.labels(outcome=episode.failure).inc()
            return
        outcome = "unscored" if episode.correct is None else ("correct" if episode.correct else "wrong")
        self.episodes.labels(outcome=outcome).inc()
        self.episode_seconds.observe(episode.answer.seconds)
