"""Generates the samples that an installation would have exported in the last hours, as OpenMetrics text."""

from collections.abc import Iterator
from itertools import product

from tests.cluster.static.monitoring_registry import external_metrics
from tools.generate.service_metrics import Described, own_metrics

BUCKETS = ("0.01", "0.1", "0.5", "1.0", "5.0", "30.0", "+Inf")
FAILED = ["ok", "unavailable"]

# Example values of our labels, by metric where a name means different things. A new label must be added here.
VALUES: dict[str, dict[str, list[str]]] = {
    "": {"owner": ["query batcher", "learner"],
        "version": ["0.1.0"], "mode": ["bm25"], "stage": ["wait", "rank"], "layer": ["memory", "redis"],
        "result": ["hit", "miss"], "call": ["read", "write"], "generation": ["20260101-000000-abcdef"],
        "method": ["s3"], "outcome": FAILED, "engine": ["generator", "judge"], "request": ["chat", "stream"],
        "direction": ["prompt", "completion"], "decided_by": ["span", "judge"], "correct": ["true", "false"],
        "format": ["html"], "phase": ["rollouts", "update", "validation", "publish"], "service": ["generator"],
        "tracker": ["mlflow"], "part": ["blocking", "background"],
        "model": ["policy", "critic"],
    },
    "searchrl_retriever_queries": {"outcome": ["ok", "failed"]},
    "searchrl_retriever_requests_rejected": {"kind": ["overloaded"]},
    "searchrl_retriever_index_info": {"kind": ["bm25"]},
    "searchrl_generator_in_flight": {"kind": ["answers", "generations"]},
    "searchrl_generator_slots": {"kind": ["answers", "generations"]},
    "searchrl_generator_requests_rejected": {"kind": ["answers"]},
    "searchrl_generator_engine_attempts_failed": {"kind": ["unavailable"]},
    "searchrl_evaluator_episodes": {"outcome": ["correct", "wrong", "unavailable"]},
    "searchrl_evaluator_runs": {"state": ["finished", "failed"]},
    "searchrl_trainer_rollouts": {"outcome": ["Reward"], "stop_reason": ["completed", "truncated"]},
    "searchrl_trainer_groups": {"state": ["trained", "zero_variance", "replaced"]},
    "searchrl_trainer_infra_failures": {"kind": ["unavailable"]},
    "searchrl_trainer_tokens": {"kind": ["sampled", "given"]},
    "searchrl_policy_server_tokens": {"kind": ["prompt", "reused", "sampled"]},
}  # fmt: skip
METHODS = {
    "retriever": (("grpc", "Search"), ("http", "/v1/search")),
    "generator": (("grpc", "Answer"), ("http", "/v1/answer")),
    "evaluator": (("http", "/v1/runs"),),
    "trainer": (("http", "/v1/status"),),
    "policy-server": (("http", "/v1/completions"),),
}
CONSTANT = ("_info", "_up", "_ready", "_configured", "_available", "_supervised", "_open")


def openmetrics(now: float, hours: float, step: float) -> str:
    """Samples of every metric, ours and others', up to ``now``."""
    times = [now - hours * 3600 + step * number for number in range(int(hours * 3600 / step) + 1)]
    lines: list[str] = []
    for family in (own_metrics() | external_metrics()).values():
        if family.name == "ALERTS":
            continue
        lines.append(f"# TYPE {family.name} {family.type}")
        for number, labels in enumerate(_label_sets(family), start=1):
            lines.extend(_samples(family, labels, number, times))
    return "\n".join([*lines, "# EOF", ""])


def _samples(family: Described, labels: dict[str, str], number: int, times: list[float]) -> Iterator[str]:
    """Samples of one series at all times; counters and histograms grow linearly, gauges stay constant."""
    text = ",".join(f'{name}="{value}"' for name, value in labels.items())
    if family.type == "histogram":
        for rank, bucket in enumerate(BUCKETS, start=1):
            for at in times:
                count = (at - times[0]) * number * rank / len(BUCKETS)
                yield f'{family.name}_bucket{{{text},le="{bucket}"}} {count:.3f} {at:.3f}'
        for suffix, factor in (("_sum", 0.3), ("_count", 1.0)):
            for at in times if suffix != family.without else ():
                yield f"{family.name}{suffix}{{{text}}} {(at - times[0]) * number * factor:.3f} {at:.3f}"
        return
    suffix = "_total" if family.type == "counter" else ""
    for at in times:
        yield f"{family.name}{suffix}{{{text}}} {_value(family, number, at, times):.3f} {at:.3f}"


def _value(family: Described, number: int, at: float, times: list[float]) -> float:
    if family.type == "counter":
        return (at - times[0]) * number * 0.1
    if family.name.endswith("_timestamp_seconds"):
        return at - 60
    return 1.0 if family.name.endswith(CONSTANT) else 0.25 * number


def _label_sets(family: Described) -> Iterator[dict[str, str]]:
    if family.owner == "every service":
        for component in METHODS:
            for inner in _of_component(family, component):
                yield _target(component) | inner
        return
    own = VALUES.get(family.name, {})
    choices = [family.values.get(label) or own.get(label) or VALUES[""][label] for label in family.labels]
    component = family.target if family.owner == "external" else family.owner
    for chosen in product(*choices):
        yield _target(component) | dict(zip(family.labels, chosen, strict=True))


def _of_component(family: Described, component: str) -> Iterator[dict[str, str]]:
    for (transport, method), outcome in product(METHODS[component], FAILED):
        request = {"transport": transport, "method": method, "outcome": outcome}
        every = {"component": component, "version": "0.1.0", **request}
        if outcome == FAILED[0] or "outcome" in family.labels:
            labels = {label: every[label] for label in family.labels}
            if method == METHODS[component][0][1] or {"transport", "method"} & set(labels):
                yield labels


def _target(component: str) -> dict[str, str]:
    pod = f"rel-{component}-0"
    place = {"namespace": "somewhere", "job": f"somewhere/rel-{component}", "instance": f"{pod}:8080"}
    return place | {"pod": pod, "container": component}
