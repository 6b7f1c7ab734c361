"""The state of a job and of its pods in one word and one sentence, as ``searchrl runs`` shows it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from searchrl.cli.commands.runs import age_text
from searchrl.jobs.run_view import VALIDATION_MESSAGE, find_last_message, pod_lines, view_of


def job(status: dict[str, Any], *, kind: str = "Job", suspend: bool = False, queue: str = "") -> dict[str, Any]:
    labels = {"searchrl.io/run": "r", "searchrl.io/step": "train"}
    labels |= {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    metadata = {"name": "j", "namespace": "n", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"kind": kind, "metadata": metadata, "spec": {"suspend": suspend}, "status": status}


def condition(name: str, message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": name, "status": "True", "message": message}]}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (job({}), "starting"),
        (job({"active": 1, "ready": 1}), "running"),
        (job({"active": 1, "ready": 0}), "starting"),
        (job(condition("Complete")), "done"),
        (job(condition("Failed", "exit code 2")), "failed"),
        (job(condition("Suspended"), suspend=True), "stopped"),
        (job({}, suspend=True, queue="research"), "queued"),
        (job({"jobDeploymentStatus": "Running"}, kind="RayJob"), "running"),
        (job({"jobDeploymentStatus": "Initializing"}, kind="RayJob"), "starting"),
        (job({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, kind="RayJob"), "done"),
        (job({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, kind="RayJob"), "failed"),
        (job({"jobDeploymentStatus": "Failed", "message": "why"}, kind="RayJob"), "failed"),
        (job({"jobDeploymentStatus": "Suspended"}, kind="RayJob", suspend=True), "stopped"),
    ],
)
def test_the_state_of_a_job_is_one_word(found: dict[str, Any], state: str) -> None:
    assert view_of(found).state == state


@pytest.mark.parametrize(
    ("found", "state"),
    [(job({}, suspend=True, queue="research"), "deleting"), (job(condition("Complete")), "done")],
)
def test_a_job_that_is_being_deleted_is_neither_queued_nor_running(found: dict[str, Any], state: str) -> None:
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    assert view_of(found).state == state


def test_a_failed_job_reports_why() -> None:
    assert view_of(job(condition("Failed", "exit code 2"))).message == "exit code 2"


def test_the_reason_why_a_pod_does_not_start_is_shown() -> None:
    pods = [
        {
            "metadata": {"name": "a"},
            "status": {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient cpu"}],
            },
        },
        {
            "metadata": {"name": "b"},
            "status": {
                "phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
                "containerStatuses": [
                    {"name": "trainer", "state": {"terminated": {"exitCode": 2, "message": "x\ntrainer: no model"}}}
                ],
            },
        },
        {
            "metadata": {"name": "c"},
            "status": {
                "phase": "Pending",
                "containerStatuses": [{"name": "t", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}],
            },
        },
    ]
    assert pod_lines(pods) == [
        "a: Pending, not scheduled: 0/1 nodes: Insufficient cpu",
        "b: Failed, disrupted: EvictionByEvictionAPI, trainer ended with 2: trainer: no model",
        "c: Pending, t waits (ErrImagePull: m)",
    ]


def test_ages_are_short() -> None:
    now = datetime(2026, 1, 3, 1, 0, tzinfo=UTC)
    assert [age_text(f"2026-01-0{day}T00:00:00Z", now) for day in (1, 3)] == ["2d", "1h"]
    assert age_text("", now) == ""


@pytest.mark.parametrize(
    "as_line", [lambda text: json.dumps({"level": "info", "message": text}), "12:00 INFO {}".format]
)
def test_the_last_validation_of_a_log_is_found_in_json_and_in_text(as_line: Callable[[str], str]) -> None:
    texts = ["validation of step 0: success 0.5", "step 1", "validation of step 10: success 0.7", "the pod ends"]
    assert find_last_message(map(as_line, texts), VALIDATION_MESSAGE) == texts[2]
    assert find_last_message(map(as_line, texts[1:2]), VALIDATION_MESSAGE) == ""
