"""Builds the training dashboard: reward, policy health, rollouts, throughput and reliability of a run."""

from tools.generate.dashboards.panels import (
    Json,
    dashboard,
    graph,
    heatmap,
    label_variable,
    mean,
    of_gpus,
    rate,
    share,
    stat,
)
from tools.generate.dashboards.rollout_engines import policy_server, vllm_engines
from tools.generate.dashboards.run_queries import PICK, T, gauge, query
from tools.generate.dashboards.validation import validation_panels

RESTARTS = "kube_pod_container_status_restarts_total"


def build() -> Json:
    """Return the trainer's dashboard."""
    return dashboard(
        "searchrl-training",
        "SearchRL / RL training",
        "Reward, policy health, rollouts, throughput, step time and reliability of a training run.",
        [
            ("Run", _run()),
            ("Reward", _reward()),
            ("Validation", validation_panels()),
            ("Policy", _policy()),
            ("Rollouts", _rollouts()),
            ("Throughput and step time", _steps()),
            ("Rollout engines (vLLM)", vllm_engines()),
            ("Searcher engine (policy server)", policy_server()),
            ("Reliability", _reliability()),
        ],
        [label_variable("run", "Run", 'searchrl_trainer_step{namespace=~"$namespace"}', "run")],
    )


def _run() -> list[Json]:
    progress = "max by (job, instance) (searchrl_trainer_step{$pick} / searchrl_trainer_planned_steps{$pick})"
    return [
        stat("Step", "short", [gauge("step")], "Steps finished."),
        stat("Progress", "percentunit", [query(progress, "{{instance}}")], "Of the planned steps."),
        stat("Accuracy", "percentunit", [gauge("success_ratio")], "Share of the last step's rollouts."),
        stat(
            "Since the last step",
            "s",
            [
                query(
                    "time() - max by (job, instance) (searchrl_trainer_last_step_timestamp_seconds{$pick})",
                    "{{instance}}",
                )
            ],
            "Much longer than the step time: the run is stuck.",
        ),
        stat(
            "Since the last checkpoint",
            "s",
            [
                query(
                    "time() - max by (job, instance) (searchrl_trainer_last_checkpoint_timestamp_seconds{$pick})",
                    "{{instance}}",
                )
            ],
            "The progress that a lost node would cost.",
        ),
        stat(
            "Collapse warning",
            "bool_yes_no",
            [gauge("collapse_warning")],
            "The policy seems to collapse.",
            (("green", None), ("red", 1.0)),
        ),
    ]


def _reward() -> list[Json]:
    buckets = "sum by (le) (rate(searchrl_trainer_reward_bucket{$pick}[$__rate_interval]))"
    return [
        graph(
            "Reward",
            "short",
            # A gauge, because a histogram with negative bounds has no _sum from which to compute a mean.
            [gauge("step_reward")],
            "Mean of the last step.",
        ),
        graph(
            "Reward quantiles",
            "short",
            [
                query(f"histogram_quantile({share_}, {buckets})", name)
                for name, share_ in (("p10", "0.1"), ("p50", "0.5"), ("p90", "0.9"))
            ],
            "Over rollouts.",
        ),
        heatmap(
            "Reward distribution",
            "short",
            [query(buckets, "{{le}}")],
            "Two bands are normal: correct and wrong answers.",
        ),
        graph(
            "Reward spread within groups",
            "short",
            [gauge("group_reward_std", "deviation")],
            "Near 0 there is nothing to learn.",
        ),
        graph(
            # Underfilled and stale groups are in neither number: they start again and end in one of these states.
            "Groups without variance",
            "percentunit",
            [
                query(
                    share(
                        f'{PICK},state=~"zero_variance|replaced"',
                        f'{PICK},state=~"trained|zero_variance|replaced"',
                        f"{T}_groups_total",
                    ),
                    "share",
                )
            ],
            "Too easy or too hard for the policy.",
        ),
        graph(
            "Accuracy and well-formed rollouts",
            "percentunit",
            [gauge("success_ratio", "accuracy"), gauge("well_formed_ratio", "well-formed")],
            "Of the last step.",
        ),
        graph(
            "What rollouts find",
            "percentunit",
            [
                gauge("answer_in_context_ratio", "answer in context"),
                gauge("gold_recall_ratio", "gold recall"),
                gauge("selection_precision_ratio", "selection precision"),
            ],
            "Of the last step. Recall is 0 if the questions name no gold passages.",
        ),
    ]


def _policy() -> list[Json]:
    return [
        graph(
            "KL",
            "short",
            [
                gauge("kl_reference", "to the reference"),
                gauge("mismatch_kl", "sampling against training"),
                gauge("logprob_mismatch", "engine against learner"),
            ],
            "Nats per token. Engine against learner at equal weights must stay near 0.",
        ),
        graph("Entropy", "short", [gauge("entropy")], "Nats per sampled token; a fall to 0 is a collapse."),
        graph(
            "Gradient norm and loss",
            "short",
            [gauge("grad_norm", "gradient norm"), gauge("loss", "loss")],
            "Before clipping.",
        ),
        graph(
            "Critic",
            "short",
            [gauge(f"value_{name}", name) for name in ("loss", "explained_variance_ratio", "grad_norm")],
            "Of PPO. Near 0 explained variance the critic is no better than a constant.",
        ),
        graph(
            "Clipped and masked tokens",
            "percentunit",
            [
                gauge("clipped_ratio", "ratio clipped"),
                gauge("importance_masked_ratio", "masked by importance bounds"),
                gauge("importance_capped_ratio", "weight capped"),
            ],
            "Tokens that the off-policy bounds affect.",
        ),
        graph(
            "Staleness",
            "short",
            [gauge("staleness_versions", "oldest token"), gauge("policy_version", "version in service")],
            "In policy versions.",
        ),
        graph(
            "Learning rate and good tokens",
            "short",
            [gauge("learning_rate", "learning rate"), gauge("logprob_drop", "log-probability drop")],
            "Good tokens must not lose probability.",
        ),
    ]


def _rollouts() -> list[Json]:
    cut = 'stop_reason=~"truncated|context_overflow|time_limit"'
    return [
        graph(
            "Searches, turns, documents",
            "short",
            [
                query(mean(f"{T}_searches", PICK), "searches"),
                query(mean(f"{T}_turns", PICK), "turns"),
                gauge("documents", "documents"),
            ],
            "Means per rollout.",
        ),
        graph(
            "Why rollouts stop",
            "reqps",
            [query(rate(f"{T}_rollouts_total", PICK, "outcome,stop_reason"), "{{outcome}} {{stop_reason}}")],
            "Rollouts per second.",
        ),
        graph(
            "Cut short",
            "percentunit",
            [query(share(f"{PICK},{cut}", PICK, f"{T}_rollouts_total"), "share")],
            "By tokens, context or time.",
        ),
        graph(
            "Tokens per rollout",
            "short",
            [
                query(
                    (
                        # scalar(), because a series with the label kind has no partner in a sum without labels.
                        "sum by (kind) (rate(searchrl_trainer_tokens_total{$pick}[$__rate_interval])) "
                        "/ scalar(sum(rate(searchrl_trainer_rollouts_total{$pick}[$__rate_interval])))"
                    ),
                    "{{kind}}",
                ),
            ],
            "Sampled tokens are trained; given ones (prompt, retrieved text) are masked.",
        ),
        graph(
            "Masked share",
            "percentunit",
            [query(share(f'{PICK},kind="given"', PICK, f"{T}_tokens_total"), "given tokens")],
            "Prompt and retrieved tokens, which carry no loss.",
        ),
        graph(
            "Time per rollout",
            "s",
            [query(mean(f"{T}_{name}_seconds", PICK), name) for name in ("rollout", "generate", "retrieval", "reward")],
            "Means: rollout without its reward; waiting for tokens; searching; scoring.",
        ),
    ]


def _steps() -> list[Json]:
    phases = "sum by (phase) (searchrl_trainer_step_phase_seconds{$pick})"
    idle = (
        'sum(searchrl_trainer_step_phase_seconds{$pick,phase="rollouts"}) '
        "/ sum(searchrl_trainer_step_phase_seconds{$pick})"
    )
    return [
        graph(
            "Step time by phase",
            "s",
            [query(phases, "{{phase}}")],
            "rollouts: the time in which the learner waits for groups.",
            stacked=True,
        ),
        graph(
            "Step time", "s", [gauge("last_step_duration_seconds")], "From the end of one step to the end of the next."
        ),
        graph(
            "Learner waits",
            "percentunit",
            [query(idle, "share of the step")],
            "Time in which the learner has no groups (the bubble).",
        ),
        graph(
            "Tokens per second",
            "short",
            [query(rate(f"{T}_tokens_total", PICK, "kind"), "{{kind}}")],
            "Of finished rollouts.",
        ),
        graph(
            "Rollouts and groups per second",
            "short",
            [
                query("sum(rate(searchrl_trainer_rollouts_total{$pick}[$__rate_interval]))", "rollouts"),
                query(rate(f"{T}_groups_total", PICK, "state"), "groups {{state}}"),
            ],
            "Underfilled and stale groups start again.",
        ),
        graph(
            "Queues",
            "short",
            [gauge("groups_in_flight", "groups running"), gauge("groups_waiting", "groups waiting for the learner")],
            "If none wait, rollouts are the bottleneck.",
        ),
        graph(
            "GPU in use",
            "percent",
            [query(f"avg by (Hostname, gpu) ({of_gpus('DCGM_FI_DEV_GPU_UTIL')})", "{{Hostname}} {{gpu}}")],
            "From the DCGM exporter, if installed.",
        ),
    ]


def _reliability() -> list[Json]:
    return [
        graph(
            "Failed calls",
            "ops",
            [query(rate(f"{T}_infra_failures_total", PICK, "service,kind"), "{{service}} {{kind}}")],
            "Calls of other services, before retries.",
        ),
        graph(
            "Dispatch",
            "short",
            [gauge("circuit_breaker_open", "circuit breaker open"), gauge("paused", "paused")],
            "1 while the circuit breaker is open because services fail, or while the run is paused on request.",
        ),
        graph(
            "Failures of background work",
            "short",
            [query(f"sum by (owner) (increase({T}_thread_failures_total{{$pick}}[$__rate_interval]))")],
            "Jobs of the learner, and of the thread that keeps finished rollouts.",
        ),
        graph(
            "Checkpoints",
            "s",
            [
                query(
                    "max by (job, instance, part) (searchrl_trainer_checkpoint_seconds{$pick})",
                    "time of the last one, {{part}}",
                ),
                query(
                    "time() - max by (job, instance) (searchrl_trainer_last_checkpoint_timestamp_seconds{$pick})", "age"
                ),
            ],
            "Age grows to the checkpoint interval.",
        ),
        graph(
            "Weight push",
            "s",
            [gauge("weight_push_seconds", "time of the last one")],
            "Until every server of vLLM that did not fail has proved the new weights; 0 with the engine torch.",
        ),
        graph("Size of the weights", "bytes", [gauge("weight_push_bytes", "to each server")], "Of the last push."),
        graph(
            "Lost servers of the engine",
            "short",
            [
                query(f"sum(increase({T}_weight_push_failures_total{{$pick}}[$__rate_interval]))", "failed pushes"),
                query(f"sum(increase({T}_engine_failovers_total{{$pick}}[$__rate_interval]))", "turns sampled again"),
            ],
            "A server that fails is replaced, and its turns are sampled on another one.",
        ),
        graph(
            "Skipped updates",
            "short",
            [query(f"sum by (model) (increase({T}_nonfinite_updates_total{{$pick}}[$__rate_interval]))", "{{model}}")],
            "Must stay 0.",
        ),
        stat("Resumed from step", "short", [gauge("resumed_step")], "0: not resumed."),
        graph(
            "Rollbacks",
            "short",
            [query(f"sum(increase({T}_rollbacks_total{{$pick}}[$__rate_interval]))", "rollbacks")],
            "Returns to an earlier checkpoint, with a lower learning rate.",
        ),
        graph(
            "Container restarts",
            "short",
            [
                query(
                    f'sum by (pod) (increase({RESTARTS}{{$place,container="trainer"}}[$__rate_interval]))',
                    "{{pod}}",
                )
            ],
            "From kube-state-metrics.",
        ),
        graph(
            "Steps that trackers lost",
            "short",
            [query(f"sum by (tracker) (increase({T}_tracker_lost_steps_total{{$pick}}[$__rate_interval]))")],
            "A tracker failed or was too slow; training is not affected, and metrics.jsonl has every step.",
        ),
    ]
