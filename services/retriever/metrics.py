"""Every metric this service exports. Names and units are public: dashboards query them."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

# From a lookup in memory (below a millisecond) to a ranking that waits behind full batches (seconds).
STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Powers of two; ``batching.max_batch`` is 512 by default, so 1024 is for larger settings.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class RetrieverMetrics:
    """Built once in the wiring, with a private registry in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._add_queries(registry)
        self._add_cache(registry)
        self._add_index(registry)

    def _add_queries(self, registry: CollectorRegistry) -> None:
        self.queries = Counter(
            "searchrl_retriever_queries_total",
            "Queries answered, by mode and outcome (ok, invalid, failed).",
            ["mode", "outcome"],  # modes of the index only: a request for another one is refused before
            registry=registry,
        )
        self.rejected = Counter(
            "searchrl_retriever_requests_rejected_total",
            "Requests refused or expired before ranking, by error kind.",
            ["kind"],  # values of ErrorKind
            registry=registry,
        )
        self.abandoned = Counter(
            "searchrl_retriever_requests_abandoned_total",
            "Requests whose caller disconnected while waiting.",
            registry=registry,
        )
        self.failed_queries = Counter(
            "searchrl_retriever_failed_queries_total",
            "Queries whose ranking raised an unexpected error.",
            registry=registry,
        )
        self.thread_failures = Counter(
            "searchrl_retriever_thread_failures_total",
            "Failed jobs of the query batcher, index loader, index follower and file check.",
            ["owner"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "searchrl_retriever_stage_duration_seconds",
            "Time per stage: cache (per request), wait (per request), rank (per batch), fetch (per request).",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.batch_queries = Histogram(
            "searchrl_retriever_batch_queries",
            "Distinct queries ranked together.",
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "searchrl_retriever_queue_depth_queries", "Queries waiting to be ranked.", registry=registry
        )
        self.queue_limit = Gauge(
            "searchrl_retriever_queue_limit_queries",
            "Largest number of waiting queries; more are refused.",
            registry=registry,
        )

    def _add_cache(self, registry: CollectorRegistry) -> None:
        self.cache_lookups = Counter(
            "searchrl_retriever_cache_lookups_total",
            "Cache lookups, by layer (memory, redis) and result (hit, miss).",
            ["layer", "result"],
            registry=registry,
        )
        self.cache_errors = Counter(
            "searchrl_retriever_cache_errors_total", "Redis calls that failed or took too long.", registry=registry
        )
        self.cache_bypasses = Counter(
            "searchrl_retriever_cache_bypasses_total",
            "Queries not looked up in Redis because it is unavailable.",
            registry=registry,
        )
        self.cache_entries = Gauge("searchrl_retriever_cache_entries", "Rankings cached in memory.", registry=registry)
        self.cache_bytes = Gauge(
            "searchrl_retriever_cache_bytes",
            "Estimated memory of the rankings cached in the process.",
            registry=registry,
        )
        self.cache_evictions = Counter(
            "searchrl_retriever_cache_evictions_total", "Rankings evicted from the cache in memory.", registry=registry
        )
        self.redis_seconds = Histogram(
            "searchrl_retriever_redis_duration_seconds",
            "Time of Redis calls (read, write), failed ones included.",
            ["call"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.redis_configured = Gauge(
            "searchrl_retriever_redis_configured", "1 if the settings name a Redis.", registry=registry
        )
        self.redis_available = Gauge(
            "searchrl_retriever_redis_available", "1 while Redis answers; 0 while it is bypassed.", registry=registry
        )
        self.shared_flights = Counter(
            "searchrl_retriever_shared_flights_total",
            "Queries that waited for an equal query in flight.",
            registry=registry,
        )

    def _add_index(self, registry: CollectorRegistry) -> None:
        self.index_info = Gauge(
            "searchrl_retriever_index_info",
            "1 for the active index generation.",
            ["generation", "kind"],  # one series at a time: a swap removes that of the old generation
            registry=registry,
        )
        self.index_passages = Gauge(
            "searchrl_retriever_index_passages", "Passages in the active index generation.", registry=registry
        )
        self.index_created = Gauge(
            "searchrl_retriever_index_created_timestamp_seconds",
            "When the active index generation was built.",
            registry=registry,
        )
        self.index_swaps = Counter(
            "searchrl_retriever_index_swaps_total", "Index generations put into service.", registry=registry
        )
        self.index_fallback = Gauge(
            "searchrl_retriever_index_fallback",
            "1 while an older index generation replaces a damaged one.",
            registry=registry,
        )
        self.index_failures = Counter(
            "searchrl_retriever_index_load_failures_total",
            "Index generations that could not be loaded.",
            registry=registry,
        )
