"""Builds the panels about the engines that sample rollouts: vLLM, and the policy server."""

from tools.generate.dashboards.panels import PICK, PLACE, Json, graph, query, rate

P = "searchrl_policy_server"
V = f'{PLACE},run!="",run=~"$run"'  # vLLM's series without a run are those of generators


def vllm_engines() -> list[Json]:
    """Return the panels of the vLLM servers that a run was submitted with."""
    hits, asked = (rate(f"vllm:prefix_cache_{name}_total", V, "run") for name in ("hits", "queries"))
    return [
        graph(
            "Running and waiting turns",
            "short",
            [
                query(f"sum by (pod) (vllm:num_requests_running{{{V}}})", "running {{pod}}"),
                query(f"sum by (pod) (vllm:num_requests_waiting{{{V}}})", "waiting {{pod}}"),
            ],
            "Turns inside vLLM, waiting for a slot or sampled.",
        ),
        graph(
            "KV cache in use",
            "percentunit",
            [query(f"max by (pod) (vllm:kv_cache_usage_perc{{{V}}})", "{{pod}}")],
            "0 to 1. Near 1, turns are preempted, and computed again.",
            high=0.9,
        ),
        graph(
            "Tokens per second of vLLM",
            "short",
            [
                query(rate("vllm:prompt_tokens_total", V, "pod"), "prompt {{pod}}"),
                query(rate("vllm:generation_tokens_total", V, "pod"), "generation {{pod}}"),
            ],
            "Throughput.",
        ),
        graph(
            "Preemptions and prefix cache of vLLM",
            "short",
            [
                query(rate("vllm:num_preemptions_total", V, "pod"), "preemptions per second {{pod}}"),
                query(f"{hits} / {asked}", "prefix cache hit ratio {{run}}"),
            ],
            "Each push of weights empties the prefix cache.",
        ),
    ]


def policy_server() -> list[Json]:
    """Return the panels of the policy server."""
    return [
        graph(
            "Tokens",
            "short",
            # The policy server's metrics have no label run, so they are selected by namespace and job alone.
            [query(rate(f"{P}_tokens_total", PICK, "kind"), "{{kind}}")],
            "Reused tokens came from the cache of earlier turns.",
        ),
        graph(
            "Busy",
            "percentunit",
            [
                query(
                    "sum by (instance) (rate(searchrl_policy_server_busy_seconds_total{$pick}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            "Share of time spent decoding.",
        ),
        graph(
            "Waiting requests",
            "short",
            [query("sum(searchrl_policy_server_requests_waiting{$pick})", "waiting")],
            "Requests that wait for a slot of the policy server.",
        ),
    ]
