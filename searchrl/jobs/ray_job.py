"""Renders distributed training as a Ray cluster: a RayJob of KubeRay, or an indexed Job whose pods start Ray."""

import shlex
from dataclasses import replace
from typing import Any

from searchrl.jobs.batch_job import batch_job, metadata
from searchrl.jobs.job_settings import DATA, JobSettings
from searchrl.jobs.pod_spec import container, pod_template, resources
from searchrl.jobs.step import Program, Size, Step

RAY_VERSION = "2.60.0"  # the version in requirements/trainer.lock, which the image contains
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TMPDIR": "/tmp/ray",
    "RAY_DEDUP_LOGS": "0",
    # By default a raylet gives its agents 30 s to start, then ends and its pod with it; on a busy machine they take
    # longer.
    "RAY_agent_register_timeout_ms": "300000",
}
RAY_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001}
METRICS_PORT = 8081  # of Ray; 8080 is the trainer's
SUBMITTER_RETRIES = 2
"""New submitter pods if one fails. It only submits and prints the log, so a few attempts are enough."""
CLUSTER_RETRIES = 3
"""New clusters at most, fewer than a Job's retries: each one starts head and workers again."""


def indexed_ray_job(step: Step, settings: JobSettings) -> dict[str, Any]:
    """Render a step as an indexed Job: pod 0 is Ray's head and runs the trainer, the others join and run the ranks.

    All pods of a Job are equal, so with GPUs pod 0 has one as well: a rank runs there, and there is one pod less.

    The pods find each other through a folder on the shared storage, to which the head writes its address. RAY_GROUP,
    the Job's own id, keeps pods of an earlier Job of the same run out.
    """
    # On CPUs pod 0 is left to the trainer, which samples there if nothing else does.
    rank_on_head = step.program.on_gpu
    workers = step.workers - 1 if rank_on_head else step.workers
    launcher = (
        "python",
        "-m",
        "services.trainer.cluster.ray_cluster",
        "--rendezvous",
        f"{DATA}/runs/{step.run_id}/ray",
    )
    launcher += ("--workers", str(workers), *(("--rank-on-head",) if rank_on_head else ()))
    command = (*launcher, "--", *step.program.command)
    environment = {**step.program.environment, **RAY_ENVIRONMENT}
    manifest = batch_job(
        replace(step, program=replace(step.program, command=command, environment=environment)), settings
    )
    manifest["spec"] |= {"completions": workers + 1, "parallelism": workers + 1}
    # The address is an IP, because pods of a Job have names in DNS only behind a headless service.
    (pod,) = manifest["spec"]["template"]["spec"]["containers"]
    fields = {"POD_IP": "status.podIP", "RAY_GROUP": "metadata.labels['batch.kubernetes.io/controller-uid']"}
    pod["env"] += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return manifest


def ray_job(step: Step, settings: JobSettings) -> dict[str, Any]:
    """Render a step as a RayJob: the operator creates the cluster, submits the trainer to its head, and deletes it.

    If the head is evicted, the operator creates a new cluster and runs the same command again, which continues the run.
    """
    # The operator deletes a finished cluster after ttlSecondsAfterFinished, a minute in which its logs can be read. The
    # head has num-cpus 0, so that Ray places the learner's ranks on the workers.
    grace = settings.grace_seconds or step.grace_seconds
    spec: dict[str, Any] = {
        # Ray gives the entrypoint to a shell, so every argument is quoted.
        "entrypoint": shlex.join(step.program.command),
        "submissionMode": "K8sJobMode",
        "backoffLimit": min(settings.retries, CLUSTER_RETRIES),
        "submitterConfig": {"backoffLimit": SUBMITTER_RETRIES},
        "submitterPodTemplate": _submitter(step, settings),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 60,
        "rayClusterSpec": {
            "rayVersion": RAY_VERSION,
            "headGroupSpec": {
                "rayStartParams": {
                    "dashboard-host": "0.0.0.0",
                    "num-cpus": "0",
                    "metrics-export-port": str(METRICS_PORT),
                },
                "template": pod_template(step, settings, [_head(step, settings)], grace),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "ranks",
                    # All three are equal, because the number of ranks cannot change during a run.
                    "replicas": step.workers,
                    "minReplicas": step.workers,
                    "maxReplicas": step.workers,
                    "rayStartParams": {"metrics-export-port": str(METRICS_PORT)},
                    "template": pod_template(step, settings, [_worker(step, settings)], grace),
                }
            ],
        },
    }
    if settings.deadline_seconds:
        spec["activeDeadlineSeconds"] = settings.deadline_seconds
    if settings.queue:
        spec["suspend"] = True
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata(step, settings), "spec": spec}


def _head(step: Step, settings: JobSettings) -> dict[str, Any]:
    program = replace(
        step.program,
        name="head",
        environment={**step.program.environment, **RAY_ENVIRONMENT},
        ports={**step.program.ports, **RAY_PORTS, "metrics": METRICS_PORT},
        on_gpu=False,  # the ranks are on the workers
    )
    # SIGTERM goes to the container's first process, which starts Ray, and not to the trainer: the hook stops the
    # trainer before the signal is sent.
    leave = ["python", "-m", "services.trainer.runs.stop_run", "--run", f"{DATA}/runs/{step.run_id}"]
    manifest = _without_command(container(program, step, settings))
    return {**manifest, **_probes(8265), "lifecycle": {"preStop": {"exec": {"command": leave}}}}


def _worker(step: Step, settings: JobSettings) -> dict[str, Any]:
    program = Program(
        "worker", step.program.service, (), step.worker_size, environment=RAY_ENVIRONMENT,
        ports={"metrics": METRICS_PORT}, on_gpu=step.program.on_gpu,
    )  # fmt: skip
    return {**_without_command(container(program, step, settings)), **_probes(None)}


def _submitter(step: Step, settings: JobSettings) -> dict[str, Any]:
    """Return the template of the submitter, which waits for the job and prints its log."""
    program = Program("submitter", step.program.service, (), Size("100m", "512Mi"), environment=RAY_ENVIRONMENT)
    waiting = replace(step, component="job-submitter", calls_services=False)
    manifest = _without_command(container(program, waiting, settings))
    manifest["resources"] = resources(program.size, settings)
    return pod_template(waiting, settings, [manifest], 30)


def _without_command(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the container without its command: KubeRay writes that."""
    return {name: value for name, value in manifest.items() if name != "command"}


def _probes(dashboard: int | None) -> dict[str, Any]:
    """Return probes of the raylet and, on the head, of the dashboard.

    They replace the probes that KubeRay would add, which call wget; these need only Python. 10 s are enough for two
    requests of at most 4 s and the start of Python. A pod may take 10 minutes to start and is killed only after 5
    minutes without an answer, because losing it can end the cluster.
    """
    urls = ["http://127.0.0.1:52365/api/local_raylet_healthz"]
    urls += [f"http://127.0.0.1:{dashboard}/api/gcs_healthz"] if dashboard else []
    code = "import sys, urllib.request as r; [r.urlopen(u, timeout=4) for u in sys.argv[1:]]"
    probe = {
        "exec": {"command": ["python", "-S", "-c", code, *urls]},
        "periodSeconds": 10,
        "timeoutSeconds": 10,
    }
    return {
        "startupProbe": {**probe, "failureThreshold": 60},
        "readinessProbe": {**probe, "failureThreshold": 6},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 10},
    }
