"""The remote policy sends ids, reads ids, and never mistakes a failure for a generation."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from searchrl.agent.types import Generation, Sampling
from searchrl.clients.remote_policy import RemotePolicy, policy_version
from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServiceError, Unavailable
from searchrl.platform.request_context import request
from searchrl.platform.retry import RetryPolicy

# Retries as usual, but with waits of milliseconds: no test here is about their length.
FAST = RetryPolicy(attempts=3, first_seconds=0.001, max_seconds=0.002)


def completion(**changes: Any) -> dict[str, Any]:
    choice = {"token_ids": [5, 6], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "stop", "text": "x"}
    return {"choices": [choice | changes], "system_fingerprint": "v12:" + "a" * 64}


def policy_over(answer: Callable[[httpx.Request], httpx.Response], **settings: Any) -> RemotePolicy:
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return RemotePolicy("http://engine:8000/v1", "small", client=client, retries=FAST, **settings)


async def test_a_generation_is_read_from_ids_and_logprobs() -> None:
    async with policy_over(lambda _: httpx.Response(200, json=completion())) as policy:
        generation = await policy.generate([1, 2], Sampling(), "r1")
    assert generation == Generation((5, 6), (-0.5, -1.0), (12, 12), "stop")


async def test_the_request_is_the_documented_one() -> None:
    seen: list[httpx.Request] = []

    def answer(call: httpx.Request) -> httpx.Response:
        seen.append(call)
        return httpx.Response(200, json=completion())

    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=26, stop=("</query>",), seed=3)
    async with policy_over(answer, key="secret") as policy:
        with request("req-1", 9.0):
            await policy.generate([1, 2], sampling, "r1")
    assert str(seen[0].url) == "http://engine:8000/v1/completions"
    assert json.loads(seen[0].content) == {
        "model": "small",
        "prompt": [1, 2],
        "max_tokens": 26,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
        "include_stop_str_in_output": True,
        "stop": ["</query>"],
        "seed": 3,
    }
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert seen[0].headers["x-rollout-id"] == "r1"
    assert seen[0].headers["x-request-id"] == "req-1"
    assert 8.0 < float(seen[0].headers["x-request-timeout"]) <= 9.0


@pytest.mark.parametrize(
    ("said", "meant"), [("stop", "stop"), ("length", "length"), ("abort", "aborted"), (None, "aborted")]
)
async def test_finish_reasons_are_the_three_of_the_loop(said: str | None, meant: str) -> None:
    async with policy_over(lambda _: httpx.Response(200, json=completion(finish_reason=said))) as policy:
        assert (await policy.generate([1], Sampling(), "r1")).finish_reason == meant


@pytest.mark.parametrize(
    "changes",
    [{"token_ids": None}, {"logprobs": None}, {"logprobs": {"token_logprobs": [None, -1.0]}}, {"token_ids": [5]}],
)
async def test_an_answer_without_ids_and_logprobs_of_one_length_is_an_error(changes: dict[str, Any]) -> None:
    async with policy_over(lambda _: httpx.Response(200, json=completion(**changes))) as policy:
        with pytest.raises(ServiceError, match="log-probabilities"):
            await policy.generate([1], Sampling(), "r1")


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity"])
async def test_a_log_probability_that_is_no_number_is_an_error(value: bytes) -> None:
    content = json.dumps(completion()).encode().replace(b"-1.0", value)
    async with policy_over(lambda _: httpx.Response(200, content=content)) as policy:
        with pytest.raises(ServiceError, match="no number"):
            await policy.generate([1], Sampling(), "r1")


class Dripping(httpx.AsyncByteStream):
    """An endless response body whose every single read is fast."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1000
            await asyncio.sleep(0.01)


async def test_an_engine_that_sends_single_bytes_is_aborted_at_the_timeout() -> None:
    policy = policy_over(lambda _: httpx.Response(200, stream=Dripping()), timeout_seconds=0.2)
    async with policy, asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded, match="in time"):
            await policy.generate([1], Sampling(), "r1")


async def test_a_reply_over_the_size_limit_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchrl.clients.remote_policy.MAX_REPLY_BYTES", 1500)
    policy = policy_over(lambda _: httpx.Response(200, stream=Dripping()))
    async with policy, asyncio.timeout(20):
        with pytest.raises(Unavailable, match="over 1500 bytes"):
            await policy.generate([1], Sampling(), "r1")


async def test_a_reply_that_cannot_be_unpacked_is_an_outage() -> None:
    headers = {"content-encoding": "gzip"}
    async with policy_over(lambda _: httpx.Response(200, headers=headers, stream=Dripping())) as policy:
        with pytest.raises(Unavailable):
            await policy.generate([1], Sampling(), "r1")


@pytest.mark.parametrize("text", ["<html>", "[" * 100_000], ids=["a page", "nested too deep"])
async def test_an_answer_that_is_not_json_is_an_error(text: str) -> None:
    async with policy_over(lambda _: httpx.Response(200, text=text)) as policy:
        with pytest.raises(ServiceError, match="JSON"):
            await policy.generate([1], Sampling(), "r1")


@pytest.mark.parametrize("status", [429, 503, 502])
async def test_overload_and_outage_are_retried(status: int) -> None:
    answers = [httpx.Response(status, headers={"retry-after": "0"}), httpx.Response(200, json=completion())]
    async with policy_over(lambda _: answers.pop(0)) as policy:
        assert (await policy.generate([1], Sampling(), "r1")).ids == (5, 6)


async def test_a_lasting_overload_is_raised_with_its_retry_after() -> None:
    async with policy_over(lambda _: httpx.Response(429, headers={"retry-after": "0.001"}, text="full")) as policy:
        with pytest.raises(Overloaded, match="full") as caught:
            await policy.generate([1], Sampling(), "r1")
    assert caught.value.retry_after_seconds == 0.001


async def test_a_bad_request_is_not_retried() -> None:
    calls: list[httpx.Request] = []

    def answer(call: httpx.Request) -> httpx.Response:
        calls.append(call)
        return httpx.Response(400, json={"error": {"message": "context too long"}})

    async with policy_over(answer) as policy:
        with pytest.raises(InvalidRequest, match="context too long"):
            await policy.generate([1], Sampling(), "r1")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("failure", "meant"), [(httpx.ConnectError("refused"), Unavailable), (httpx.ReadTimeout("slow"), DeadlineExceeded)]
)
async def test_transport_failures_are_infrastructure_errors(failure: Exception, meant: type[ServiceError]) -> None:
    def answer(call: httpx.Request) -> httpx.Response:
        raise failure

    async with policy_over(answer) as policy:
        with pytest.raises(meant):
            await policy.generate([1], Sampling(), "r1")


@pytest.mark.parametrize(
    ("fingerprint", "version"), [("v3:abc", 3), ("v41", 41), (None, 0), ("vllm-0.11.0", 0), ("fp_123", 0), (7, 0)]
)
def test_the_policy_version_is_read_from_the_fingerprint(fingerprint: object, version: int) -> None:
    assert policy_version(fingerprint) == version
