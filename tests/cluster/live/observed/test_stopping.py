"""What happens to a long answer of vLLM when its pod is told to go? The last tests here: they end the engine's pod."""

import json
import time

import pytest

from tests.cluster.live.observed.conftest import Observed, newest_pod
from tests.cluster.live.releases import await_rollout

pytestmark = pytest.mark.timeout(600)

TOKENS, REPLIES = 1900, 16  # enough that it goes on well after SIGTERM, on an idle machine too


def test_an_answer_in_flight_ends_well_and_the_next_pod_takes_over(observed: Observed) -> None:
    pod = newest_pod(observed.release, "engine-generator")
    name, spec = pod["metadata"]["name"], pod["spec"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "temperature": 1}
    whole = {"max_tokens": TOKENS, "n": REPLIES, "stream": True, "stream_options": {"include_usage": True}}
    with observed.http.stream("POST", "/v1/chat/completions", json=body | whole) as reply:
        lines = (line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: "))
        next(lines)
        observed.release.kubectl("delete", "pod", name, "--wait=false")
        deleted = time.monotonic()
        *chunks, last = lines
        answered = time.monotonic()
    assert last == "[DONE]"
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] == TOKENS * REPLIES
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert answered - deleted > pause + 1, "it was over before SIGTERM came: the test has shown nothing"
    observed.release.kubectl("wait", "--for=delete", f"pod/{name}", "--timeout=120s")
    assert time.monotonic() - deleted < spec["terminationGracePeriodSeconds"], "it was killed"
    await_rollout(observed.release, "engine-generator")
    assert newest_pod(observed.release, "engine-generator")["metadata"]["name"] != name
    again = observed.http.post("/v1/chat/completions", json=body | {"max_tokens": 4})
    assert again.status_code == 200, again.text
