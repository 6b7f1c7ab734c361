"""Builds the retriever's dashboard: requests, stages, batches, cache and index generations."""

from tools.generate.dashboards.panels import (
    PICK,
    Json,
    dashboard,
    graph,
    heatmap,
    instant,
    mean,
    quantiles,
    query,
    rate,
    share,
    stat,
    table,
)

R = "searchrl_retriever"
ONLY = f'{PICK},component="retriever"'


def build() -> Json:
    """Return the retriever's dashboard."""
    return dashboard(
        "searchrl-retriever",
        "SearchRL / Retriever",
        "Requests, stages, batches, cache and index generations.",
        [("Requests", _requests()), ("Stages and batches", _stages()), ("Cache", _cache()), ("Index", _index())],
    )


def _requests() -> list[Json]:
    return [
        graph(
            "Requests by protocol and outcome",
            "reqps",
            [query(rate("searchrl_requests_total", ONLY, "transport,outcome"), "{{transport}} {{outcome}}")],
            "One request may carry many queries.",
        ),
        graph(
            "Queries by mode and outcome",
            "ops",
            [query(rate(f"{R}_queries_total", PICK, "mode,outcome"), "{{mode}} {{outcome}}")],
            "Queries in the requests; each succeeds or fails independently.",
        ),
        quantiles("Latency by protocol", "searchrl_request_duration_seconds", "transport", ONLY, "Complete requests."),
        graph(
            "Refused and abandoned",
            "reqps",
            [
                query(rate(f"{R}_requests_rejected_total", PICK, "kind"), "{{kind}}"),
                query(
                    "sum(rate(searchrl_retriever_requests_abandoned_total{$pick}[$__rate_interval]))",
                    "abandoned by the caller",
                ),
                query("sum(rate(searchrl_retriever_failed_queries_total{$pick}[$__rate_interval]))", "failed queries"),
            ],
            "Overloaded means that the queue was full.",
        ),
    ]


def _stages() -> list[Json]:
    return [
        quantiles(
            "Time per stage",
            f"{R}_stage_duration_seconds",
            "stage",
            PICK,
            "cache and fetch per request, wait per job, rank per batch.",
        ),
        graph(
            "Mean batch",
            "short",
            [query(mean(f"{R}_batch_queries", PICK), "queries")],
            "Distinct queries ranked together.",
        ),
        heatmap(
            "Batch sizes",
            "short",
            [query("sum by (le) (rate(searchrl_retriever_batch_queries_bucket{$pick}[$__rate_interval]))", "{{le}}")],
            "Large batches under load are good: they share one pass over the index.",
        ),
        graph(
            "Queue",
            "short",
            [
                query("sum(searchrl_retriever_queue_depth_queries{$pick})", "waiting"),
                query("sum(searchrl_retriever_queue_limit_queries{$pick})", "limit"),
            ],
            "Queries that wait to be ranked.",
        ),
    ]


def _cache() -> list[Json]:
    hit = f'{PICK},result="hit"'
    return [
        graph(
            "Hit ratio",
            "percentunit",
            [query(share(hit, PICK, f"{R}_cache_lookups_total", "layer"), "{{layer}}")],
            "Redis is queried only for what is not in memory.",
        ),
        graph(
            "Look-ups",
            "ops",
            [query(rate(f"{R}_cache_lookups_total", PICK, "layer,result"), "{{layer}} {{result}}")],
            "By layer and result.",
        ),
        graph(
            "Errors, bypasses, joined queries",
            "ops",
            [
                query("sum(rate(searchrl_retriever_cache_errors_total{$pick}[$__rate_interval]))", "Redis errors"),
                query(
                    "sum(rate(searchrl_retriever_cache_bypasses_total{$pick}[$__rate_interval]))",
                    "not looked up: Redis bypassed",
                ),
                query(
                    "sum(rate(searchrl_retriever_shared_flights_total{$pick}[$__rate_interval]))",
                    "joined an equal query",
                ),
            ],
            "Without Redis, searches continue uncached.",
        ),
        quantiles(
            "Redis latency",
            f"{R}_redis_duration_seconds",
            "call",
            PICK,
            "Failed calls included; a read waits 50 ms at most.",
        ),
        graph(
            "Redis circuit breaker",
            "bool_on_off",
            [
                query(
                    (
                        # Without a configured Redis, 0 is no outage.
                        "min by (instance) (searchrl_retriever_redis_available{$pick}) "
                        "and on (instance) (searchrl_retriever_redis_configured{$pick} == 1)"
                    ),
                    "{{instance}}",
                )
            ],
            "1, closed: Redis is used. 0, open: Redis is bypassed until a probe succeeds.",
        ),
        graph(
            "Entries and evictions",
            "short",
            [
                query("sum(searchrl_retriever_cache_entries{$pick})", "entries in memory"),
                query(
                    "sum(rate(searchrl_retriever_cache_evictions_total{$pick}[$__rate_interval]))",
                    "evictions per second",
                ),
            ],
            "Steady evictions: raise cache.memory_entries or memory_megabytes.",
        ),
        graph(
            "Memory",
            "bytes",
            [query("sum by (instance) (searchrl_retriever_cache_bytes{$pick})", "{{instance}}")],
            "Estimated size of the rankings in each process.",
        ),
    ]


def _index() -> list[Json]:
    return [
        # max: replicas serve the same index, so a sum would count every passage once per replica.
        stat(
            "Passages", "short", [query("max(searchrl_retriever_index_passages{$pick})")], "In the active generation."
        ),
        stat(
            "Age of the index",
            "s",
            # The gauge is 0 until an index is loaded, and would make the index as old as 1970.
            [query("time() - min(searchrl_retriever_index_created_timestamp_seconds{$pick} > 0)")],
            "Since the oldest active generation was built.",
            (("green", None), ("orange", 30 * 86400.0)),
        ),
        table(
            "Generations in service",
            [instant("count by (generation, kind) (searchrl_retriever_index_info{$pick} == 1)")],
            "More than one for more than a few minutes means that a replica does not follow.",
        ),
        graph(
            "Swaps and failed loads",
            "short",
            [
                query("sum(increase(searchrl_retriever_index_swaps_total{$pick}[$__rate_interval]))", "put in service"),
                query(
                    "sum(increase(searchrl_retriever_index_load_failures_total{$pick}[$__rate_interval]))",
                    "could not be loaded",
                ),
                query(
                    "sum(searchrl_retriever_index_fallback{$pick})",
                    "older one instead of a damaged one",
                ),
            ],
            "After a failed load the old generation stays in service; a damaged one is replaced by the previous one.",
        ),
        graph(
            "Failures of background work",
            "short",
            [query("sum by (owner) (increase(searchrl_retriever_thread_failures_total{$pick}[$__rate_interval]))")],
            "Failed batches, failed rounds of the index follower, damaged files.",
        ),
    ]
