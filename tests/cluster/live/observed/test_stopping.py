"""A long answer of vLLM in flight is completed when its pod is stopped. Runs last here: the engine stays stopped."""

import json
import time

import pytest

from tests.cluster.live.cluster_objects import api
from tests.cluster.live.observed.conftest import Observed, newest_pod

pytestmark = pytest.mark.timeout(600)

TOKENS, REPLIES = 1900, 16  # long enough to continue well after SIGTERM, even on an idle machine
NONE = {"spec": {"replicas": 0}}


def test_an_answer_in_flight_ends_well_before_the_pod_does(observed_release: Observed) -> None:
    pod = newest_pod(observed_release.release, "engine-generator")
    name, spec = pod["metadata"]["name"], pod["spec"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "temperature": 1}
    streamed = {"max_tokens": TOKENS, "n": REPLIES, "stream": True, "stream_options": {"include_usage": True}}
    apps = api("AppsV1Api")  # not kubectl, which takes seconds to start while vLLM generates
    with observed_release.http.stream("POST", "/v1/chat/completions", json=body | streamed) as reply:
        lines = (line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: "))
        next(lines)
        signaled = time.monotonic()
        apps.patch_namespaced_deployment_scale("observed-engine-generator", observed_release.release.namespace, NONE)
        *chunks, last = lines
        answered = time.monotonic()
    assert last == "[DONE]"
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] == TOKENS * REPLIES
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert answered - signaled > pause + 1, "it was over before SIGTERM came: the test has shown nothing"
    observed_release.release.kubectl("wait", "--for=delete", f"pod/{name}", "--timeout=120s")
    assert time.monotonic() - signaled < spec["terminationGracePeriodSeconds"], "it was killed"
