"""Lists the metrics that each service exports, from its metric objects, and writes them as tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from searchrl.platform.telemetry.metrics_endpoint import RequestMetrics
from services.evaluator.metrics import EvaluatorMetrics
from services.generator.metrics import GeneratorMetrics
from services.policy_server.metrics import EngineCollector
from services.retriever.metrics import RetrieverMetrics
from services.trainer.metrics import TrainerMetrics

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@dataclass(frozen=True)
class Described:
    """A metric family: its type, its label names, and the service that exports it."""

    name: str
    type: str
    labels: tuple[str, ...]
    owner: str
    text: str = ""
    values: dict[str, list[str]] = field(default_factory=dict, hash=False)
    target: str = "engine"
    without: str | None = None  # a suffix that is not exported

    @property
    def series(self) -> list[str]:
        return [self.name + suffix for suffix in SUFFIXES[self.type] if suffix != self.without]


@cache
def own_metrics() -> dict[str, Described]:
    """Every family that a service of ours exports, by name without suffix."""
    found: dict[str, Described] = {}
    for owner, build in BUILDERS.items():
        registry = CollectorRegistry()
        build(registry)
        # Private attributes, here and below: a family that prometheus_client collects names its labels in its samples
        # only, and a metric with labels has none before its first use.
        for collector in registry._collector_to_names:
            for described in _described(collector, owner):
                found[described.name] = described
    return found


def _described(collector: Any, owner: str) -> Iterator[Described]:
    """The families of a collector: one for a metric object, several for a custom collector."""
    if isinstance(collector, MetricWrapperBase):
        # prometheus_client exports no _sum if observations can be negative, for then the sum is no counter.
        is_signed = getattr(collector, "_upper_bounds", [0])[0] < 0
        yield Described(
            collector._name,
            str(collector._type),
            tuple(collector._labelnames),
            owner,
            collector._documentation,
            without="_sum" if is_signed else None,
        )
        return
    for family in collector.collect():
        labels = tuple(family.samples[0].labels) if family.samples else ()
        yield Described(family.name, family.type, labels, owner, family.documentation)


def _policy_server(registry: CollectorRegistry) -> None:
    # The values do not matter: only names, labels and texts are read.
    counters = SimpleNamespace(prompt_tokens=1, reused_tokens=1, sampled_tokens=1, decode_seconds=1.0, waiting=0)
    registry.register(EngineCollector(SimpleNamespace(counters=lambda: counters)))  # type: ignore[arg-type]


BUILDERS = {
    "every service": lambda registry: RequestMetrics(registry, "retriever"),
    "retriever": RetrieverMetrics,
    "generator": GeneratorMetrics,
    "evaluator": EvaluatorMetrics,
    "trainer": TrainerMetrics,
    "policy-server": _policy_server,
}


def metrics_table(owner: str) -> str:
    """Return the metrics of one owner as a Markdown table, sorted by name."""
    rows = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} "
        f"| {', '.join(family.labels)} | {family.text} |"
        for family in own_metrics().values()
        if family.owner == owner
    ]
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *sorted(rows)])
