"""Defines every metric that the generator exports. Names and units are public: dashboards query them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from searchrl.errors import ErrorKind, ServiceError

# from an answer of the reader, which runs no model, to the default limit of one answer (limits.answer_seconds)
ANSWER_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# searches and documents: small counts have a bucket each; 50 is the default of limits.max_top_k
COUNT_BUCKETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
OK = "ok"
CANCELLED = "cancelled"


@contextmanager
def count_outcome(count: Callable[[str], object]) -> Iterator[None]:
    """Call ``count`` with how the block ended: ok, an error kind, or cancelled."""
    outcome = ErrorKind.INTERNAL.value
    try:
        yield
        outcome = OK
    except ServiceError as error:
        outcome = error.kind.value
        raise
    except (asyncio.CancelledError, GeneratorExit):
        outcome = CANCELLED
        raise
    finally:
        count(outcome)


class EngineMetrics:
    """The metrics of one engine; ``engine`` is "generator" or "judge"."""

    def __init__(self, owner: "GeneratorMetrics", engine: str) -> None:
        self._owner = owner
        self.engine = engine
        self._first_text = owner.engine_first_text.labels(engine)
        self._prompt_tokens = owner.engine_tokens.labels(engine, "prompt")
        self._completion_tokens = owner.engine_tokens.labels(engine, "completion")
        # Looked up once: ``labels`` takes a lock and builds a key at every call.
        self._seconds = {kind: owner.engine_seconds.labels(engine, kind) for kind in ("chat", "stream", "proxy")}

    @contextmanager
    def measure_call(self, kind: str) -> Iterator[None]:
        """Time one request of ``kind`` (chat, stream or proxy) and count its outcome."""
        started = time.monotonic()
        with count_outcome(self._count):
            yield
        # Successes only: failures end at once or at the deadline, and would say nothing about the engine's speed.
        self._seconds[kind].observe(time.monotonic() - started)

    def add_tokens(self, prompt: int, completion: int) -> None:
        self._prompt_tokens.inc(prompt)
        self._completion_tokens.inc(completion)

    def observe_first_text(self, seconds: float) -> None:
        """Record the time from a streamed request to its first text."""
        self._first_text.observe(seconds)

    def _count(self, outcome: str) -> None:
        self._owner.engine_requests.labels(self.engine, outcome).inc()

    def count_failed_attempt(self, error: ServiceError) -> None:
        self._owner.engine_attempts_failed.labels(self.engine, error.kind.value).inc()


class GeneratorMetrics:
    """Built once in the wiring, with a private registry in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self._add_answers(registry)
        self._add_engine(registry)
        self._add_judge(registry)

    def engine(self, name: str) -> EngineMetrics:
        return EngineMetrics(self, name)

    def _add_answers(self, registry: CollectorRegistry) -> None:
        self.answers = Counter(
            "searchrl_generator_answers_total",
            "Answers by method and outcome.",
            ["method", "outcome"],
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "searchrl_generator_answer_duration_seconds",
            "Time from an admitted question to its complete answer.",
            ["method"],
            buckets=ANSWER_BUCKETS,
            registry=registry,
        )
        self.answer_searches = Histogram(
            "searchrl_generator_answer_searches",
            "Queries per answer, the initial one not counted.",
            ["method"],
            buckets=COUNT_BUCKETS,
            registry=registry,
        )
        self.answer_documents = Histogram(
            "searchrl_generator_answer_documents",
            "Documents given to the generator per answer.",
            ["method"],
            buckets=COUNT_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "searchrl_generator_in_flight", "Requests in progress.", ["kind"], registry=registry
        )  # answers | generations
        self.slots = Gauge(
            "searchrl_generator_slots", "Requests that may be in progress at a time.", ["kind"], registry=registry
        )
        self.rejected = Counter(
            "searchrl_generator_requests_rejected_total",
            "Requests refused at the admission limit.",
            ["kind"],
            registry=registry,
        )

    def _add_engine(self, registry: CollectorRegistry) -> None:
        self.engine_requests = Counter(
            "searchrl_generator_engine_requests_total",
            "Requests to an engine.",
            ["engine", "outcome"],
            registry=registry,
        )
        self.engine_attempts_failed = Counter(
            "searchrl_generator_engine_attempts_failed_total",
            "Attempts that failed, each retry counted.",
            ["engine", "kind"],
            registry=registry,
        )
        self.engine_seconds = Histogram(
            "searchrl_generator_engine_duration_seconds",
            "Time of successful engine requests, retries included.",
            ["engine", "request"],  # chat | stream | proxy
            buckets=ANSWER_BUCKETS,
            registry=registry,
        )
        self.engine_first_text = Histogram(
            "searchrl_generator_engine_first_text_seconds",
            "Time from a streamed engine request to its first text, retries included.",
            ["engine"],
            buckets=ANSWER_BUCKETS,
            registry=registry,
        )
        self.engine_tokens = Counter(
            "searchrl_generator_engine_tokens_total",
            "Tokens read and generated by an engine.",
            ["engine", "direction"],  # prompt | completion
            registry=registry,
        )
        self.engine_restarts = Counter(
            "searchrl_generator_engine_restarts_total",
            "Restarts of the model server process.",
            ["engine"],
            registry=registry,
        )
        self.engine_supervised = Gauge(
            "searchrl_generator_engine_supervised",
            "1 if the generator runs the model server, else 0.",
            ["engine"],
            registry=registry,
        )
        self.engine_up = Gauge(
            "searchrl_generator_engine_up",
            "1 while the model server process answers, else 0.",
            ["engine"],
            registry=registry,
        )

    def _add_judge(self, registry: CollectorRegistry) -> None:
        self.verdicts = Counter(
            "searchrl_generator_verdicts_total",
            "Verdicts by the check that decided.",
            ["decided_by", "correct"],
            registry=registry,
        )
        self.verdict_cache = Counter(
            "searchrl_generator_verdict_cache_total", "Look-ups of judge verdicts.", ["result"], registry=registry
        )  # hit | miss
        self.judge_unreadable = Counter(
            "searchrl_generator_judge_unreadable_total",
            "Judge replies that were neither yes nor no.",
            registry=registry,
        )
