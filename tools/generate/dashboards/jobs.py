"""Builds the dashboard of the evaluator and of Kubernetes jobs, pods and volumes."""

from tools.generate.dashboards.panels import (
    PICK,
    Json,
    dashboard,
    graph,
    heatmap,
    instant,
    quantiles,
    query,
    rate,
    share,
    stat,
    table,
)

E = "searchrl_evaluator"
RESTARTS = "kube_pod_container_status_restarts_total"


def build() -> Json:
    """Return the dashboard of the evaluator, jobs and volumes."""
    return dashboard(
        "searchrl-jobs",
        "SearchRL / Evaluator and jobs",
        "Evaluation runs and scores; Jobs, RayJobs, queues, restarts and volumes from the cluster's exporters.",
        [("Evaluations", _evaluations()), ("Jobs", _jobs()), ("Pods and volumes", _pods())],
    )


def _evaluations() -> list[Json]:
    # Failed and unscored episodes are in neither number of the accuracy.
    judged = f'{PICK},outcome=~"correct|wrong"'
    return [
        stat(
            "Runs in progress",
            "short",
            [query("sum(searchrl_evaluator_runs_in_progress{$pick})")],
            "In all evaluators.",
        ),
        graph(
            "Episodes by outcome",
            "ops",
            [query(rate(f"{E}_episodes_total", PICK, "outcome"), "{{outcome}}")],
            "correct, wrong, unscored, not_applicable, or the kind of the failure.",
        ),
        graph(
            "Accuracy",
            "percentunit",
            [query(share(f'{PICK},outcome="correct"', judged, f"{E}_episodes_total"), "share of judged episodes")],
            "All methods together; the reports separate them.",
        ),
        quantiles("Time per episode", f"{E}_episode_duration_seconds", "", PICK, "Time of the generator."),
        heatmap(
            "Episode times",
            "s",
            [
                query(
                    "sum by (le) (rate(searchrl_evaluator_episode_duration_seconds_bucket{$pick}[$__rate_interval]))",
                    "{{le}}",
                )
            ],
            "Two bands: methods with and without searches.",
        ),
        graph(
            "Runs ended",
            "short",
            [query("sum by (state) (increase(searchrl_evaluator_runs_total{$pick}[$__rate_interval]))", "{{state}}")],
            "By state.",
        ),
        quantiles(
            "Judge",
            "searchrl_generator_engine_duration_seconds",
            "request",
            f'{PICK},engine="judge"',
            "If the judge has its own engine.",
        ),
        quantiles("Reports", f"{E}_report_duration_seconds", "format", PICK, "Time to make one."),
    ]


def _jobs() -> list[Json]:
    return [
        table(
            "Jobs",
            [
                instant("sum by (namespace, job_name) (kube_job_status_active{$place})"),
                instant("sum by (namespace, job_name) (kube_job_status_failed{$place})"),
                instant("sum by (namespace, job_name) (kube_job_status_succeeded{$place})"),
            ],
            "Pods that are active, failed, succeeded.",
        ),
        table(
            "RayJobs",
            [instant("max by (namespace, name, deployment_status) (kuberay_job_deployment_status{$place})")],
            "From the KubeRay operator.",
        ),
        quantiles(
            "Wait for admission", "kueue_admission_wait_time_seconds", "cluster_queue", "", "From Kueue, if it is used."
        ),
        graph(
            "Workloads waiting",
            "short",
            [query("sum by (cluster_queue, status) (kueue_pending_workloads)", "{{cluster_queue}} {{status}}")],
            "Inadmissible ones need quota or a fix.",
        ),
    ]


def _pods() -> list[Json]:
    used = (
        "max by (persistentvolumeclaim) (kubelet_volume_stats_used_bytes{$place} "
        "/ kubelet_volume_stats_capacity_bytes{$place})"
    )
    return [
        graph(
            "Restarts",
            "short",
            [
                query(
                    f"sum by (pod, container) (increase({RESTARTS}{{$place}}[$__rate_interval]))",
                    "{{pod}} {{container}}",
                )
            ],
            "Of containers.",
        ),
        graph(
            "Pods by phase",
            "short",
            [query("sum by (phase) (kube_pod_status_phase{$place})", "{{phase}}")],
            "Pods pending for long: no room, no GPU, or no image.",
        ),
        graph("Volumes in use", "percentunit", [query(used, "{{persistentvolumeclaim}}")], "From kubelet.", high=0.9),
    ]
