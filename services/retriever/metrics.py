"""Every metric this service exports. Names and units are public: dashboards query them."""

from searchrl.platform.telemetry.metric_table import MetricTable, counter, gauge, histogram

# From a lookup in memory (below a millisecond) to a ranking that waits behind full batches (seconds).
STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Powers of two; ``batching.max_batch`` is 512 by default, so 1024 is for larger settings.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class RetrieverMetrics(MetricTable):
    """Built once in the wiring, with a private registry in tests."""

    # modes of the index only: a request for another one is refused before
    queries = counter(
        "searchrl_retriever_queries_total",
        "Queries answered, by mode and outcome (ok, invalid, failed).",
        "mode",
        "outcome",
    )
    # values of ErrorKind
    rejected = counter(
        "searchrl_retriever_requests_rejected_total",
        "Requests refused or expired before ranking, by error kind.",
        "kind",
    )
    abandoned = counter(
        "searchrl_retriever_requests_abandoned_total", "Requests whose caller disconnected while waiting."
    )
    failed_queries = counter(
        "searchrl_retriever_failed_queries_total", "Queries whose ranking raised an unexpected error."
    )
    thread_failures = counter(
        "searchrl_retriever_thread_failures_total",
        "Failed jobs of the query batcher, index loader, index follower and file check.",
        "owner",
    )
    stage_seconds = histogram(
        "searchrl_retriever_stage_duration_seconds",
        "Time per stage: cache (per request), wait (per request), rank (per batch), fetch (per request).",
        "stage",
        buckets=STAGE_BUCKETS,
    )
    batch_queries = histogram(
        "searchrl_retriever_batch_queries", "Distinct queries ranked together.", buckets=BATCH_BUCKETS
    )
    queue_depth = gauge("searchrl_retriever_queue_depth_queries", "Queries waiting to be ranked.")
    queue_limit = gauge(
        "searchrl_retriever_queue_limit_queries", "Largest number of waiting queries; more are refused."
    )
    cache_lookups = counter(
        "searchrl_retriever_cache_lookups_total",
        "Cache lookups, by layer (memory, redis) and result (hit, miss).",
        "layer",
        "result",
    )
    cache_errors = counter("searchrl_retriever_cache_errors_total", "Redis calls that failed or took too long.")
    cache_bypasses = counter(
        "searchrl_retriever_cache_bypasses_total", "Queries not looked up in Redis because it is unavailable."
    )
    cache_entries = gauge("searchrl_retriever_cache_entries", "Rankings cached in memory.")
    cache_bytes = gauge("searchrl_retriever_cache_bytes", "Estimated memory of the rankings cached in the process.")
    cache_evictions = counter("searchrl_retriever_cache_evictions_total", "Rankings evicted from the cache in memory.")
    redis_seconds = histogram(
        "searchrl_retriever_redis_duration_seconds",
        "Time of Redis calls (read, write), failed ones included.",
        "call",
        buckets=STAGE_BUCKETS,
    )
    redis_configured = gauge("searchrl_retriever_redis_configured", "1 if the settings name a Redis.")
    redis_available = gauge("searchrl_retriever_redis_available", "1 while Redis answers; 0 while it is bypassed.")
    shared_flights = counter(
        "searchrl_retriever_shared_flights_total", "Queries that waited for an equal query in flight."
    )
    # one series at a time: a swap removes that of the old generation
    index_info = gauge("searchrl_retriever_index_info", "1 for the active index generation.", "generation", "kind")
    index_passages = gauge("searchrl_retriever_index_passages", "Passages in the active index generation.")
    index_created = gauge(
        "searchrl_retriever_index_created_timestamp_seconds", "When the active index generation was built."
    )
    index_swaps = counter("searchrl_retriever_index_swaps_total", "Index generations put into service.")
    index_fallback = gauge(
        "searchrl_retriever_index_fallback", "1 while an older index generation replaces a damaged one."
    )
    index_failures = counter(
        "searchrl_retriever_index_load_failures_total", "Index generations that could not be loaded."
    )
