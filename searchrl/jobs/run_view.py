"""Summarizes the state of a job in one word and one message."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from searchrl.jobs.batch_job import KUEUE_QUEUE
from searchrl.jobs.pod_spec import RUN_LABEL, STEP_LABEL
from searchrl.jobs.rollout_engines import ENGINES_LABEL

Manifest = Mapping[str, Any]
DONE, FAILED, STOPPED, QUEUED, RUNNING, STARTING = "done", "failed", "stopped", "queued", "running", "starting"
DELETING = "deleting"
OVER = frozenset({DONE, FAILED})
VALIDATION_MESSAGE = "validation of step "
"""Begins the message that the trainer logs after each validation."""
RAY_STATES = {"Complete": DONE, "Failed": FAILED, "Suspended": STOPPED, "Running": RUNNING}


@dataclass(frozen=True, slots=True)
class RunView:
    """One job in the cluster.

    Attributes:
        state: done, failed, stopped, queued, running, starting or deleting.
        message: the reason of a failure, if the cluster states one; empty otherwise.
        failures: pods, or clusters of a RayJob, that failed so far.
        ray_cluster: the cluster that a RayJob has now; a new attempt gets another one.
        engines: name of the Job of the engines that sample for it; empty if it has none.
    """

    run_id: str
    step: str
    kind: str
    name: str
    namespace: str
    state: str
    message: str
    created: str
    failures: int
    queue: str = ""
    ray_cluster: str = ""
    engines: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def view_of(job: Manifest) -> RunView:
    """Return the view of a Job or a RayJob as returned by the API server."""
    metadata, status = job["metadata"], job.get("status") or {}
    labels = metadata.get("labels") or {}
    kind, queue = job["kind"], labels.get(KUEUE_QUEUE, "")
    state, message = _ray_state(job, status) if kind == "RayJob" else _job_state(job, status)
    if metadata.get("deletionTimestamp") and state not in OVER:
        state = DELETING  # the API server keeps the job until its pods have ended
    elif state == STOPPED and queue:
        state = QUEUED
    return RunView(
        run_id=labels.get(RUN_LABEL, ""),
        step=labels.get(STEP_LABEL, ""),
        kind=kind,
        name=metadata["name"],
        namespace=metadata["namespace"],
        state=state,
        message=message,
        created=str(metadata.get("creationTimestamp") or ""),
        failures=int(status.get("failed") or 0),
        queue=queue,
        ray_cluster=str(status.get("rayClusterName") or ""),
        engines=labels.get(ENGINES_LABEL, ""),
    )


def _job_state(job: Manifest, status: Manifest) -> tuple[str, str]:
    conditions = {entry["type"]: entry for entry in status.get("conditions") or [] if entry["status"] == "True"}
    # FailureTarget comes before Failed: it is set once the failure is certain, while pods still end.
    for name, state in (("Complete", DONE), ("Failed", FAILED), ("FailureTarget", FAILED), ("Suspended", STOPPED)):
        if name in conditions:
            return state, conditions[name].get("message", "") if state == FAILED else ""
    # The condition Suspended follows only when the controller has acted on the field. ``ready`` and not ``active``
    # decides below: a pod that still pulls its image is active already.
    if job["spec"].get("suspend"):
        return STOPPED, ""
    return (RUNNING, "") if status.get("ready") else (STARTING, "")


def _ray_state(job: Manifest, status: Manifest) -> tuple[str, str]:
    phase = str(status.get("jobDeploymentStatus") or "")
    message = str(status.get("message") or "")
    if job["spec"].get("suspend") and phase in ("", "Suspended", "Suspending"):
        return STOPPED, ""
    # The deployment is complete when the job has ended in any way; whether it succeeded is in ``jobStatus``.
    if phase == "Complete" and status.get("jobStatus") not in (None, "", "SUCCEEDED"):
        return FAILED, message
    state = RAY_STATES.get(phase, STARTING)
    return state, message if state == FAILED else ""


def pod_lines(pods: Iterable[Manifest]) -> list[str]:
    """Return one line for each pod: its phase, and messages of its containers and of the scheduler."""
    return [f"{pod['metadata']['name']}: {_pod_text(pod)}" for pod in pods]


def find_last_message(lines: Iterable[str], start: str) -> str:
    """Return the last message of a log, in JSON or text, that begins with ``start``; empty if there is none."""
    last = ""
    for line in lines:
        if start in line:
            last = line
    # a JSON line is parsed only if it is the result: a long log has a hundred thousand of them
    try:
        message = json.loads(last)["message"]
    except (ValueError, KeyError, TypeError):
        message = last[last.find(start) :] if last else ""
    return str(message)


def _pod_text(pod: Manifest) -> str:
    status = pod.get("status") or {}
    words = [str(status.get("phase", "Unknown"))]
    if pod["metadata"].get("deletionTimestamp"):
        words.append("being deleted")
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            words.append(f"not scheduled: {condition.get('message', '')}")
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            words.append(f"disrupted: {condition.get('reason', '')}")
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        words += _container_words(container)
    return ", ".join(words)


def _container_words(container: Manifest) -> list[str]:
    state = container.get("state") or {}
    waiting, ended = state.get("waiting"), state.get("terminated")
    if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
        return [f"{container['name']} waits ({waiting.get('reason')}: {waiting.get('message', '')})"]
    if ended and ended.get("exitCode"):
        text = (ended.get("message") or ended.get("reason") or "").strip().splitlines()
        return [f"{container['name']} ended with {ended['exitCode']}: {text[-1] if text else ''}"]
    return []
