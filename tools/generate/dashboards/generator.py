"""Builds the generator's dashboard: answers, engines, vLLM, judge and GPUs."""

from tools.generate.dashboards.panels import (
    PICK,
    PLACE,
    Json,
    dashboard,
    graph,
    label_variable,
    mean,
    of_gpus,
    quantiles,
    query,
    rate,
    share,
)

G = "searchrl_generator"
V = f'{PLACE},run="",model_name=~"$model"'  # the engines of training runs are on the training dashboard


def build() -> Json:
    """Return the generator's dashboard, including vLLM's metrics."""
    return dashboard(
        "searchrl-generator",
        "SearchRL / Generator",
        "Answers by method, engines as the generator sees them, vLLM from inside, the judge, GPUs.",
        [
            ("Answers", _answers()),
            ("Engines, seen from the generator", _engines()),
            ("vLLM", _vllm_latency() + _vllm_load()),
            ("Judge", _judge()),
            ("GPUs (DCGM exporter)", _gpus()),
        ],
        [label_variable("model", "Model", 'vllm:num_requests_running{run=""}', "model_name")],
    )


def _answers() -> list[Json]:
    return [
        graph(
            "Answers by method and outcome",
            "reqps",
            [query(rate(f"{G}_answers_total", PICK, "method,outcome"), "{{method}} {{outcome}}")],
            "Complete answers, and the reasons of the others.",
        ),
        quantiles(
            "Time per answer", f"{G}_answer_duration_seconds", "method", PICK, "From admission to the last token."
        ),
        graph(
            "Searches and documents per answer",
            "short",
            [
                query(mean(f"{G}_answer_searches", PICK, "method"), "searches {{method}}"),
                query(mean(f"{G}_answer_documents", PICK, "method"), "documents {{method}}"),
            ],
            "Means; the initial search is not counted.",
        ),
        graph(
            "Slots in use",
            "short",
            [
                query("sum by (kind) (searchrl_generator_in_flight{$pick})", "{{kind}}"),
                query("sum by (kind) (searchrl_generator_slots{$pick})", "{{kind}} limit"),
            ],
            "At the limit, further requests are refused.",
        ),
        graph(
            "Refused",
            "reqps",
            [query(rate(f"{G}_requests_rejected_total", PICK, "kind"), "{{kind}}")],
            "Requests over the admission limit.",
        ),
    ]


def _engines() -> list[Json]:
    return [
        graph(
            "Requests by outcome",
            "reqps",
            [query(rate(f"{G}_engine_requests_total", PICK, "engine,outcome"), "{{engine}} {{outcome}}")],
            "After retries.",
        ),
        graph(
            "Failed attempts",
            "reqps",
            [query(rate(f"{G}_engine_attempts_failed_total", PICK, "engine,kind"), "{{engine}} {{kind}}")],
            "Retries are counted.",
        ),
        quantiles(
            "Time of requests", f"{G}_engine_duration_seconds", "engine", PICK, "Successful ones, retries included."
        ),
        quantiles(
            "Time to first text",
            f"{G}_engine_first_text_seconds",
            "engine",
            PICK,
            "Of streamed requests, network and retries included.",
        ),
        graph(
            "Tokens per second",
            "short",
            [query(rate(f"{G}_engine_tokens_total", PICK, "engine,direction"), "{{engine}} {{direction}}")],
            "As the engines report them.",
        ),
        graph(
            "Model servers",
            "short",
            [
                query(
                    (
                        # Only a model server that the generator runs itself has a process to watch.
                        "min(searchrl_generator_engine_up{$pick} "
                        "and on (instance, engine) searchrl_generator_engine_supervised{$pick} == 1)"
                    ),
                    "up",
                ),
                query("sum(increase(searchrl_generator_engine_restarts_total{$pick}[$__rate_interval]))", "restarts"),
                query(
                    "sum by (deployment) "
                    '(kube_deployment_status_replicas_available{$place,deployment=~".+-engine-.+"})',
                    "{{deployment}} available",
                ),
            ],
            "The generator's own vLLM, or on Kubernetes the pods of the engines.",
        ),
    ]


def _vllm_latency() -> list[Json]:
    return [
        quantiles("Time to first token", "vllm:time_to_first_token_seconds", "", V, "Queueing and prefill."),
        quantiles("Time between tokens", "vllm:inter_token_latency_seconds", "", V, "Every token counts once."),
        quantiles("Queue time", "vllm:request_queue_time_seconds", "", V, "Waiting before the first step."),
        quantiles("Complete requests", "vllm:e2e_request_latency_seconds", "", V, "From arrival to the last token."),
    ]


def _vllm_load() -> list[Json]:
    hits = 'sum(rate(vllm:prefix_cache_hits_total{$place,run="",model_name=~"$model"}[$__rate_interval]))'
    queries = 'sum(rate(vllm:prefix_cache_queries_total{$place,run="",model_name=~"$model"}[$__rate_interval]))'
    return [
        graph(
            "Running and waiting",
            "short",
            [
                query(
                    'sum by (model_name) (vllm:num_requests_running{$place,run="",model_name=~"$model"})',
                    "running {{model_name}}",
                ),
                query(
                    'sum by (model_name) (vllm:num_requests_waiting{$place,run="",model_name=~"$model"})',
                    "waiting {{model_name}}",
                ),
            ],
            "Requests inside vLLM.",
        ),
        graph(
            "KV cache in use",
            "percentunit",
            [
                query(
                    'max by (model_name) (vllm:kv_cache_usage_perc{$place,run="",model_name=~"$model"})',
                    "{{model_name}}",
                )
            ],
            "0 to 1. Near 1, requests are preempted.",
            high=0.9,
        ),
        graph(
            "Preemptions and prefix cache",
            "short",
            [
                query(rate("vllm:num_preemptions_total", V, "model_name"), "preemptions per second {{model_name}}"),
                query(f"{hits} / {queries}", "prefix cache hit ratio"),
            ],
            "Preempted requests are computed again.",
        ),
        graph(
            "Tokens per second",
            "short",
            [
                query(rate("vllm:prompt_tokens_total", V, "model_name"), "prompt {{model_name}}"),
                query(rate("vllm:generation_tokens_total", V, "model_name"), "generation {{model_name}}"),
            ],
            "Throughput.",
        ),
        graph(
            "Finish reasons",
            "reqps",
            [query(rate("vllm:request_success_total", V, "finished_reason"), "{{finished_reason}}")],
            "length: cut by the token limit; abort: the caller closed the connection.",
        ),
    ]


def _judge() -> list[Json]:
    return [
        graph(
            "Verdicts",
            "reqps",
            [query(rate(f"{G}_verdicts_total", PICK, "decided_by,correct"), "{{decided_by}} correct={{correct}}")],
            "By the check that decided.",
        ),
        graph(
            "Cached verdicts",
            "percentunit",
            [query(share(f'{PICK},result="hit"', PICK, f"{G}_verdict_cache_total"), "hit ratio")],
            "Share of verdicts without a call of the engine.",
        ),
        graph(
            "Unreadable replies",
            "ops",
            [
                query(
                    "sum(rate(searchrl_generator_judge_unreadable_total{$pick}[$__rate_interval]))",
                    "neither yes nor no",
                )
            ],
            "Each such call is retried once.",
        ),
    ]


def _gpus() -> list[Json]:
    used = of_gpus("DCGM_FI_DEV_FB_USED")
    return [
        graph(
            "GPU in use",
            "percent",
            [query(f"avg by (Hostname, gpu) ({of_gpus('DCGM_FI_DEV_GPU_UTIL')})", "{{Hostname}} {{gpu}}")],
            "Share of time with a kernel running.",
        ),
        graph(
            "GPU memory in use",
            "percentunit",
            [
                query(
                    f"avg by (Hostname, gpu) ({used} / ({used} + {of_gpus('DCGM_FI_DEV_FB_FREE')}))",
                    "{{Hostname}} {{gpu}}",
                )
            ],
            "vLLM allocates its share at start.",
        ),
    ]
