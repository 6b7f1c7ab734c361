"""Policy of the search loop that samples from a remote engine: token ids in and out, over OpenAI's completions API."""

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx

from searchrl.agent.types import Generation, Sampling
from searchrl.clients.call_errors import from_http
from searchrl.clients.openai_url import OpenAIServerUrl
from searchrl.errors import DeadlineExceeded, ServiceError, Unavailable
from searchrl.platform.request_context import (
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    deadline,
    remaining_seconds,
    request_id,
)
from searchrl.platform.retry import RetryPolicy
from searchrl.platform.telemetry.tracing import span, trace_headers

MAX_CONNECTIONS = 512
"""Every rollout that samples holds one; httpx's default of 100 would make further ones wait. All are kept alive."""
MAX_REPLY_BYTES = 64 << 20
"""Bounds the memory of a faulty reply: 100,000 tokens with their log-probabilities take about 20 MiB."""
ENGINE_ATTRIBUTES = {"searchrl.engine": "searcher", "gen_ai.operation.name": "text_completion"}
NEUTRAL_SAMPLING = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Values without effect. They are sent because vLLM otherwise applies the model's ``generation_config.json``, and the
tokens would come from a distribution other than the trained one."""
_FINGERPRINT = re.compile(r"v(\d+)(?::|$)")
_FINISH_REASONS = {"stop": "stop", "length": "length"}  # any other reason counts as "aborted"


class RemotePolicy:
    """Samples from ``POST {base_url}/v1/completions``; implements ``searchrl.agent.types.Policy``.

    The engine must return the sampled ids (``return_token_ids``) and their log-probabilities after temperature.
    The policy version of the sampled tokens is read from ``system_fingerprint`` ("v<version>:<sha256>"); without one it
    is 0. The rollout's id is sent as the header ``X-Rollout-Id``.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 60,
        retries: RetryPolicy | None = None,
        client: httpx.AsyncClient | None = None,
        extra_fields: Mapping[str, Any] | None = None,
    ) -> None:
        self._url = OpenAIServerUrl(base_url).endpoint("/completions")
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout_seconds = timeout_seconds
        self._retries = retries or RetryPolicy()
        self._extra_fields = dict(extra_fields or {})
        self._client = client or httpx.AsyncClient(
            # As many are kept alive as may be open: with httpx's default of 20, most rollouts would open a new
            # connection for each turn.
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            trust_env=False,  # no proxy of the environment: the engine is a neighbor
        )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        """See ``searchrl.agent.types.Policy``."""
        body = self._body(prompt_ids, sampling)

        async def once() -> Mapping[str, Any]:
            with span("POST /v1/completions", ENGINE_ATTRIBUTES, kind="client") as called:
                answer = await self._post(body, rollout_id)
                called.set_attributes({"gen_ai.request.model": self._model})
                return answer

        with deadline(self._timeout_seconds):
            return _generation(await self._retries.run(once), self._url)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _body(self, prompt_ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            **NEUTRAL_SAMPLING,
            "logprobs": 0,  # of the sampled token, without alternatives
            "return_token_ids": True,
            "include_stop_str_in_output": True,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body | self._extra_fields

    async def _post(self, body: Mapping[str, Any], rollout_id: str) -> Mapping[str, Any]:
        left = remaining_seconds()
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"no time left to call {self._url}")
        headers = {**self._headers, "X-Rollout-Id": rollout_id, **dict(trace_headers())}
        if left is not None:
            # A server of ours then ends the generation when nobody waits for it any more.
            headers[TIMEOUT_HEADER] = f"{left:.3f}"
        if request_id():
            headers[REQUEST_ID_HEADER] = request_id()
        try:
            async with (
                asyncio.timeout(left),  # httpx limits single reads, which a slowly dripping server never exceeds
                # Streamed, so that a faulty reply is given up at the limit instead of being read into memory first.
                self._client.stream("POST", self._url, json=body, headers=headers, timeout=left) as response,
            ):
                content = await self._content_of(response)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise DeadlineExceeded(f"{self._url} did not answer in time") from error
        except httpx.RequestError as error:
            raise Unavailable(f"{self._url} cannot be reached: {error}", None) from error
        if not response.is_success:
            text = content.decode(errors="replace")
            raise from_http(response.status_code, response.headers, text, self._url)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServiceError(f"{self._url} did not answer with JSON") from error

    async def _content_of(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > MAX_REPLY_BYTES:
                raise Unavailable(f"the reply of {self._url} is over {MAX_REPLY_BYTES} bytes", None)
        return bytes(content)


def _generation(answer: Mapping[str, Any], url: str) -> Generation:
    """Read the only choice of an answer.

    Raises:
        ServiceError: ids or log-probabilities are missing, or differ in number.
    """
    try:
        choice = answer["choices"][0]
        ids = tuple(int(token) for token in choice["token_ids"])
        logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
        finish_reason = _FINISH_REASONS.get(choice["finish_reason"], "aborted")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServiceError(f"{url} answered without token ids or their log-probabilities: {error!r}") from error
    # Ids and log-probabilities are paired by position; of unequal lengths every later token would be paired wrongly.
    if len(ids) != len(logprobs):
        raise ServiceError(f"{url} returned {len(ids)} token ids but {len(logprobs)} log-probabilities")
    # One NaN in an importance ratio makes the loss of the entire batch NaN, so it must not get past this place.
    # Python's json reads NaN and Infinity, although they are not JSON.
    if not all(map(math.isfinite, logprobs)):
        raise ServiceError(f"{url} returned a log-probability that is no number")
    version = policy_version(answer.get("system_fingerprint"))
    return Generation(ids, logprobs, (version,) * len(ids), finish_reason)


def policy_version(fingerprint: object) -> int:
    """Parse the version in "v<version>:<sha256>"; 0 for anything else."""
    match = _FINGERPRINT.match(fingerprint) if isinstance(fingerprint, str) else None
    return int(match.group(1)) if match else 0
