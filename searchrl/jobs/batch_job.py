"""Renders a step as a plain Kubernetes Job, which needs no operator."""

from dataclasses import replace
from typing import Any

from searchrl.jobs.job_settings import JobSettings
from searchrl.jobs.pod_spec import container, labels, pod_template, sidecar
from searchrl.jobs.rollout_engines import ENGINES_LABEL, engine_name
from searchrl.jobs.step import Step
from searchrl.platform.processes import SIGTERM_EXIT

UNUSABLE = 2  # exit code of a program that was configured wrongly; the same in every service
KUEUE_QUEUE, KUEUE_PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def batch_job(step: Step, settings: JobSettings) -> dict[str, Any]:
    """Render a step as one pod or, with workers, as an indexed pod for each, of which the first directs the others.

    ``podReplacementPolicy: Failed`` starts a new pod only after the old one has ended, so that two pods never write the
    same run. A job for a Kueue queue is created suspended; Kueue starts it when it is admitted.
    """
    main = container(step.program, step, settings)
    template = pod_template(step, settings, [main], settings.grace_seconds or step.grace_seconds)
    if step.beside:
        spec = template["spec"]
        spec["initContainers"] = [sidecar(program, step, settings) for program in step.beside]
    pods = step.workers + 1
    spec = {
        "backoffLimit": settings.retries,
        "completions": pods,
        "parallelism": pods,
        # Indexed pods receive JOB_COMPLETION_INDEX, by which they know whether they are Ray's head or a worker.
        "completionMode": "Indexed" if step.workers else "NonIndexed",
        # With a failure policy Kubernetes accepts only Failed here, and only pods with restartPolicy Never.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": failure_rules(main["name"])},
        "ttlSecondsAfterFinished": settings.keep_seconds,
        "template": template,
    }
    if settings.deadline_seconds:
        spec["activeDeadlineSeconds"] = settings.deadline_seconds
    if settings.queue:
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(step, settings), "spec": spec}


def failure_rules(name: str) -> list[dict[str, Any]]:
    """Return the failure policy: disruptions and interruptions do not count, a wrong configuration fails at once.

    The first rule that matches decides, so the order matters: an evicted pod is ignored whatever its exit code.
    """
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "In", "values": [UNUSABLE]}},
        {"action": "Ignore", "onExitCodes": {"containerName": name, "operator": "In", "values": [SIGTERM_EXIT]}},
    ]


def metadata(step: Step, settings: JobSettings) -> dict[str, Any]:
    """Return a job's name and labels, including Kueue's and the name of its engines."""
    further = {KUEUE_QUEUE: settings.queue} if settings.queue else {}
    if settings.queue and settings.queue_priority:
        further[KUEUE_PRIORITY] = settings.queue_priority
    if step.engines is not None:
        further[ENGINES_LABEL] = engine_name(settings.release, step.run_id)
    found: dict[str, Any] = {
        # The API server appends five random characters (``Cluster.create`` its own), so a run can be submitted again
        # while its last job is still kept.
        "generateName": f"{settings.release}-{step.name}-",
        "labels": {**labels(step, settings), **further},
    }
    if settings.namespace:
        found["namespace"] = settings.namespace
    return found


def resize(step: Step, settings: JobSettings) -> Step:
    """Return the step with the requested CPU and memory, also for the pods of its workers."""
    size, worker_size = (
        replace(size, cpu=settings.cpu or size.cpu, memory=settings.memory or size.memory)
        for size in (step.program.size, step.worker_size)
    )
    return replace(step, program=replace(step.program, size=size), worker_size=worker_size)
