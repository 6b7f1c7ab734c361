"""Command that runs a step as a job in a Kubernetes cluster, or prints the manifest of the job."""

import argparse
import sys
from dataclasses import fields

from rich.console import Console

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError
from searchrl.jobs.catalog import render_all, to_yaml
from searchrl.jobs.cluster import Cluster
from searchrl.jobs.engine_flags import DTYPES, KV_CACHE_GIB, ON_CPUS, ON_GPUS, PROCESS_GIB, as_flag
from searchrl.jobs.job_settings import JobSettings
from searchrl.jobs.run_view import DONE, RunView
from searchrl.jobs.step import Step
from searchrl.jobs.steps import STEPS, WORLD

# Settings of the job itself, which are flags of the same names for every step. Two others are parsed from texts.
SETTINGS = {field.name for field in fields(JobSettings)} - {"node_selector", "tolerations", "keep_seconds"}


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("step", choices=STEPS, help="what to do")
    add("--run-id", help="name of what is made: index, baseline, run, evaluation (default small-world)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the run, a flag of other steps")
    add("--dry-run", action="store_true", help="print the manifest, create nothing")
    add("--follow", action="store_true", help="show the log until the job is over")
    _add_step_flags(parser)
    _add_engine_flags(parser)
    _add_cluster_flags(parser)


def _add_step_flags(parser: CommandParser) -> None:
    add = parser.add_argument_group(
        "of single steps; paths below /data/corpora, /data/questions, /data/models"
    ).add_argument
    add("--corpus", nargs="+", help="index: .jsonl or .jsonl.gz files")
    add("--questions", help="baseline, sft, train, evaluate: a file of questions below /data/questions")
    add("--validation", help="train: questions that are not trained on, below /data/questions, for validations")
    add("--data", nargs="+", help="sft: rows to train on, below /data/questions; without it the small world's script")
    add("--model", help="train, sft: where to start; evaluate: the searcher (default: the run's final model)")
    add("--preset", help="train: small_world, s3, search_r1_ppo, search_r1_grpo or verl_search")
    add("--baseline", help="train: run id of the baseline; preset s3 and rewards of kind gain_beyond_rag need one")
    add("--ranks", type=int, help="train: Ray actors of the learner, each in a pod of its own; 0: one pod, no Ray")
    add("--backend", choices=("job", "rayjob"), help="train with ranks: plain Job, or KubeRay's RayJob")
    add("--top-k", type=int, help="baseline: passages for the generator")
    add("--methods", help="evaluate: answering methods with commas")
    # None, not False, means "not given", so that ``step_of`` can refuse the flag for other steps.
    add("--served", action="store_true", default=None, help="evaluate: what the release serves, no searcher of its own")
    add("--engine", action="append", metavar="NAME=VALUE", help="evaluate: settings of the frozen model's engine")


def _add_engine_flags(parser: CommandParser) -> None:
    add = parser.add_argument_group("engines of train; their size follows from the model: docs/operations/sizing.md")
    add = add.add_argument
    add("--engines", type=int, metavar="N", help="pods that sample the rollouts with vLLM (default none)")
    add("--engine-gpus", type=int, metavar="G", help="GPUs of each engine, which share the model (default 1); 0: CPUs")
    add("--engine-dtype", choices=DTYPES, help="type of the weights (default bfloat16 on GPUs, float32 on CPUs)")
    add("--engine-cpu", help=f"CPU request of each engine (default {ON_GPUS.cpu} with GPUs, else {ON_CPUS.cpu})")
    add(
        "--engine-memory",
        help=f"memory of each engine (default {ON_GPUS.memory} with GPUs, else the KV cache + {PROCESS_GIB}Gi): "
        "1.5 x the weights with GPUs; weights + KV cache + 2Gi without",
    )
    add("--engine-kv-cache-gib", type=int, metavar="GIB", help=f"KV cache on CPUs (default {KV_CACHE_GIB})")
    add("--engine-image", help="complete image reference of the engines, instead of registry and tag")


def _add_cluster_flags(parser: CommandParser) -> None:
    add = parser.add_argument_group("cluster").add_argument
    add("-n", "--namespace", help="default: the kubeconfig's")
    add("--context", default="", help="context of the kubeconfig")
    add("--release", help="Helm release whose services are called (default searchrl)")
    add("--registry", help="registry of the images")
    add("--tag", help="tag of the images")
    add("--image", help="complete image reference, instead of registry and tag")
    add("--pull-policy", choices=("Always", "IfNotPresent", "Never"))
    add("--pull-secret", help="image pull secret")
    add("--claim", help="volume claim of /data (default RELEASE-data)")
    add("--auth-secret", help="Secret with the API keys: client-key, keys")
    add("--tls-secret", help="Secret with ca.crt, the authority of the services' certificates")
    add("--queue", help="Kueue's local queue")
    add("--queue-priority", help="Kueue's workload priority class")
    add("--priority-class", help="priority class of the pods")
    add("--node-selector", action="append", default=[], metavar="LABEL=VALUE")
    add(
        "--toleration", action="append", default=[], metavar="KEY[=VALUE][:EFFECT]", help="such as spot=true:NoSchedule"
    )
    add("--gpus", type=int, help="index (encoders), sft with --data, train: GPUs of each pod that computes")
    add("--gpu-resource", help="default nvidia.com/gpu; nvidia.com/mig-1g.20gb ...")
    add("--runtime-class", help="runtime class of the pods, such as nvidia")
    add("--cpu", help="CPU request of each pod that computes")
    add("--memory", help="memory of each pod that computes")
    add("--grace-seconds", type=int, help="time from SIGTERM to SIGKILL")
    add("--deadline-seconds", type=int, help="longest time for the job")
    add("--retries", type=int, help="failures before giving up; evictions do not count")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 created, printed or, with ``--follow``, done; 1 the job failed; 2 wrong usage."""
    settings = job_settings(arguments)
    manifests = render_all(step_of(arguments, settings), settings, operator=arguments.backend == "rayjob")
    if arguments.dry_run:
        sys.stdout.write(to_yaml(manifests))
        return 0
    cluster = Cluster.connect(arguments.context, settings.namespace)
    manifest, *engines = manifests
    job, is_new = cluster.create(manifest, engines)
    console = Console()
    console.print(f"{job.kind} {job.name} {'created' if is_new else 'is already running'}", highlight=False)
    if not arguments.follow:
        console.print(f"follow it: searchrl runs logs {job.run_id} -n {job.namespace}", highlight=False)
        return 0
    return follow(cluster, job)


def follow(cluster: Cluster, job: RunView, engine: int | None = None) -> int:
    """Print the log, of the job or of an engine, until the job ends; return 0 if it succeeded, else 1."""
    for line in cluster.follow(job, engine=engine):
        sys.stdout.write(line + "\n")
        # Output to a pipe or a file is buffered in blocks; a log should be seen while the job runs.
        sys.stdout.flush()
    ended = cluster.refresh(job)
    if ended is None:
        sys.stderr.write(f"{job.kind} {job.name} was deleted\n")
        return 1
    sys.stderr.write(f"{ended.kind} {ended.name}: {ended.state} {ended.message}".rstrip() + "\n")
    return 0 if ended.state == DONE else 1


def job_settings(arguments: argparse.Namespace) -> JobSettings:
    """Read the settings of the job from the flags.

    Raises:
        ConfigurationError: a flag cannot be read.
    """
    named = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    selector = dict(_pair(text, "--node-selector") for text in arguments.node_selector)
    tolerations = tuple(_toleration(text) for text in arguments.toleration)
    return JobSettings(**named, node_selector=selector, tolerations=tolerations)


def step_of(arguments: argparse.Namespace, settings: JobSettings) -> Step:
    """Build the step that the flags describe.

    Raises:
        ConfigurationError: a flag belongs to another step, or a required one is missing.
    """
    step, run_id = STEPS[arguments.step], arguments.run_id or WORLD
    for flag in sorted({flag for other in STEPS.values() for flag in other.flags} - set(step.flags)):
        if getattr(arguments, flag) is not None:
            steps = ", ".join(name for name, other in STEPS.items() if flag in other.flags)
            raise ConfigurationError(f"{as_flag(flag)} belongs to: {steps}")
    given = {flag: getattr(arguments, flag) for flag in step.flags if getattr(arguments, flag) is not None}
    if step.required and run_id != WORLD and step.required not in given:
        raise ConfigurationError(f"--run-id {run_id} needs --{step.required}")
    return step.build(settings, run_id, given, arguments.set)


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"{flag} takes LABEL=VALUE, got '{text}'")
    return name, value


def _toleration(text: str) -> dict[str, str]:
    left, _, effect = text.partition(":")
    key, equals, value = left.partition("=")
    if not key:
        raise ConfigurationError(f"--toleration takes KEY[=VALUE][:EFFECT], got '{text}'")
    found = {"key": key, "operator": "Equal" if equals else "Exists"}
    found |= {"value": value} if equals else {}
    return found | ({"effect": effect} if effect else {})
