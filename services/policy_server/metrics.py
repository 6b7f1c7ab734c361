"""Defines every metric that the policy server exports. Names and units are public: dashboards query them."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.trainer.engines.torch_engine import TorchEngine


class EngineCollector:
    """Exports the engine's counters as they are at the moment of a scrape."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine

    def collect(self) -> list[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        counters = self._engine.counters()
        # The client library adds _total to the names of counters.
        tokens = CounterMetricFamily("searchrl_policy_server_tokens", "Tokens by what became of them.", labels=["kind"])
        tokens.add_metric(["prompt"], counters.prompt_tokens)
        tokens.add_metric(["reused"], counters.reused_tokens)
        tokens.add_metric(["sampled"], counters.sampled_tokens)
        seconds = CounterMetricFamily("searchrl_policy_server_busy_seconds", "Time spent decoding.")
        seconds.add_metric([], counters.decode_seconds)
        waiting = GaugeMetricFamily("searchrl_policy_server_requests_waiting", "Requests that wait for a slot.")
        waiting.add_metric([], counters.waiting)
        return [tokens, seconds, waiting]
