"""Builds the overview dashboard: service level objectives, error budgets, load and saturation."""

from tools.generate.dashboards.panels import PICK, Json, dashboard, graph, instant, quantiles, query, rate, stat, table

COLORS = (("red", None), ("orange", 0.99), ("green", 0.995))
"""Colors of the availability: green from the objective of 99.5 % on."""
BUDGET = (("red", None), ("orange", 0.1), ("green", 0.5))
"""Colors of the remaining error budget: green while at least half of it is left."""


def build() -> Json:
    """Return the overview dashboard, the first one to open in an incident."""
    return dashboard(
        "searchrl-overview",
        "SearchRL / Overview",
        "Service level objectives, error budgets, load and saturation of all services.",
        [
            ("Objectives", _objectives()),
            ("Traffic", _traffic()),
            ("Saturation", _saturation()),
            ("Releases and alerts", _releases()),
        ],
    )


def _objectives() -> list[Json]:
    # 0.005 and 0.01 are the error budgets of the objectives 99.5 % and 99 %. A burn rate of 14.4 is the threshold of
    # the fast alert in rules/slo.yaml: one hour of it uses a fifth of the budget of three days.
    # The ratios are recorded by rules/slo.yaml, so a panel does not compute three days of raw series at every refresh.
    good = "1 - searchrl:request_errors:ratio_rate3d{$pick}"
    return [
        stat(
            "Availability, 3 days",
            "percentunit",
            [query(good, "{{component}}")],
            "Share of requests that did not fail because of the service; objective 99.5 %.",
            COLORS,
        ),
        stat(
            "Fast enough, 3 days",
            "percentunit",
            [query("1 - searchrl:requests_slow:ratio_rate3d{$pick}", "{{component}}")],
            "Share of searches under 0.5 s and of answers under 30 s; objective 99 %.",
            (("red", None), ("orange", 0.98), ("green", 0.99)),
        ),
        stat(
            "Error budget left",
            "percentunit",
            [query("1 - searchrl:request_errors:ratio_rate3d{$pick} / 0.005", "{{component}}")],
            "1: nothing of the budget of three days is used; 0: all of it.",
            BUDGET,
        ),
        stat(
            "Ready instances",
            "short",
            [query("sum by (component) (searchrl_ready{$pick})", "{{component}}")],
            "Instances that take traffic.",
        ),
        graph(
            "Burn rate of the error budget",
            "short",
            [
                query(f"searchrl:request_errors:ratio_rate{window}{{$pick}} / 0.005", "{{component}} " + window)
                for window in ("5m", "1h", "6h")
            ],
            "At 1 the budget lasts exactly three days; 14.4 over 5m and 1h raises a page.",
            high=14.4,
        ),
        graph(
            "Burn rate of the latency budget",
            "short",
            [
                query(f"searchrl:requests_slow:ratio_rate{window}{{$pick}} / 0.01", "{{component}} " + window)
                for window in ("5m", "1h", "6h")
            ],
            "Like the error budget, for requests that were too slow.",
            high=14.4,
        ),
    ]


def _traffic() -> list[Json]:
    return [
        graph(
            "Requests per second",
            "reqps",
            [query(rate("searchrl_requests_total", PICK, "component,transport"), "{{component}} {{transport}}")],
            "All requests except probes and scrapes.",
        ),
        graph(
            "Failures per second",
            "reqps",
            [
                query(
                    rate("searchrl_requests_total", f'{PICK},outcome!="ok"', "component,outcome"),
                    "{{component}} {{outcome}}",
                )
            ],
            "By kind; invalid requests are the caller's fault and do not count against the budget.",
        ),
        quantiles(
            "Latency", "searchrl_request_duration_seconds", "component", PICK, "Of complete answers, streams included."
        ),
    ]


def _saturation() -> list[Json]:
    return [
        graph(
            "Requests in flight",
            "short",
            [
                query(
                    "sum by (component, transport) (searchrl_requests_in_flight{$pick})",
                    "{{component}} {{transport}}",
                )
            ],
            "Requests being served.",
        ),
        graph(
            "Slots and queues used",
            "percentunit",
            [
                query(
                    "max by (kind) (searchrl_generator_in_flight{$pick} / searchrl_generator_slots{$pick})",
                    "generator {{kind}}",
                ),
                query(
                    (
                        "max(searchrl_retriever_queue_depth_queries{$pick} "
                        "/ searchrl_retriever_queue_limit_queries{$pick})"
                    ),
                    "retriever queue",
                ),
            ],
            "The fullest instance. At 1, requests are refused as overloaded.",
            high=0.8,
        ),
        graph(
            "CPU of the processes",
            "short",
            [
                query(
                    (
                        # process_* metrics have no label component. build_info, which is always 1, adds it by
                        # multiplication.
                        "sum by (component) (rate(process_cpu_seconds_total{$pick}[$__rate_interval]) "
                        "* on (job, instance) group_left (component) searchrl_build_info{$pick})"
                    ),
                    "{{component}} cores",
                ),
            ],
            "Cores that the services' own processes use; engines in other processes are not included.",
        ),
    ]


def _releases() -> list[Json]:
    return [
        table(
            "Releases",
            [instant("count by (namespace, job, component, version) (searchrl_build_info{$pick})")],
            "Versions in service and how many instances run them.",
        ),
        table(
            "Alerts that fire",
            [
                instant(
                    # With vector(0) the table shows a 0 instead of "No data" while nothing fires.
                    "sum by (alertname, severity, namespace, component) "
                    '(ALERTS{alertstate="firing",alertname=~"SearchRL.+"}) or vector(0)'
                )
            ],
            "Every alert is explained in docs/runbooks.",
        ),
    ]
