"""What happens to a long answer of vLLM when its pod is told to go? The last tests here: they end the engine's pod."""

import threading
import time

import httpx
import pytest

from tests.cluster.live.observed.conftest import Observed, engine_metrics, newest_pod
from tests.cluster.live.releases import await_rollout, await_that

pytestmark = pytest.mark.timeout(600)


def test_an_answer_in_flight_ends_well_and_the_next_pod_takes_over(observed: Observed) -> None:
    old = newest_pod(observed.release, "engine-generator")["metadata"]
    replies: list[httpx.Response] = []
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True}
    body |= {"max_tokens": 1200, "temperature": 0}
    asking = threading.Thread(target=lambda: replies.append(observed.http.post("/v1/chat/completions", json=body)))
    asking.start()
    running = 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0'
    await_that(lambda: running in engine_metrics(observed.release), 30, "the engine has begun")
    begun = time.monotonic()
    observed.release.kubectl("delete", "pod", old["name"], "--wait=false")
    asking.join(timeout=120)
    (reply,) = replies
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] == 1200
    observed.release.kubectl("wait", "--for=delete", f"pod/{old['name']}", "--timeout=90s")
    assert time.monotonic() - begun < observed_grace(observed), "it left by itself, not by force"
    await_rollout(observed.release, "engine-generator")
    assert newest_pod(observed.release, "engine-generator")["metadata"]["uid"] != old["uid"]
    assert observed.http.post("/v1/chat/completions", json=body | {"max_tokens": 4}).status_code == 200


def observed_grace(observed: Observed) -> float:
    """Seconds from SIGTERM, or before, to SIGKILL."""
    return float(newest_pod(observed.release, "engine-generator")["spec"]["terminationGracePeriodSeconds"])
