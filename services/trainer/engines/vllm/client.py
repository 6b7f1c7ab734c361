"""Calls one vLLM server: generations and scores as token ids, and the routes by which its weights are replaced."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from searchrl.agent.types import Generation, Sampling
from searchrl.clients.call_errors import from_http
from searchrl.clients.remote_policy import MAX_CONNECTIONS, RemotePolicy
from searchrl.errors import DeadlineExceeded, ServiceError, Unavailable
from searchrl.platform.retry import RetryPolicy

ONCE = RetryPolicy(attempts=1)
"""A request that failed is repeated by the engine, which may choose another server."""
KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which vLLM closes an idle connection, so that no request is sent into one that is closing."""
POLL_SECONDS = 0.5  # between questions whether a server answers again
STATE_SECONDS = 10.0
"""Limit of calls that a server answers at once; a busy one answers late."""


class VllmClient:
    """The connection to one server. Its development mode must be on, which adds the routes that change weights.

    Args:
        eos_ids: ids that end a generation. They are sent, because a server may read only one of them from the model.
    """

    def __init__(self, base_url: str, *, key: str | None, eos_ids: frozenset[int], timeout_seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = ""
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._eos_ids = sorted(eos_ids)
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_CONNECTIONS,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
            trust_env=False,  # no proxy of the environment: the engine is a neighbor
        )

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str, weights: str, adapter: str = ""
    ) -> Generation:
        """Sample one turn; versions are 0. Cancelling the call aborts the request on the server.

        Args:
            weights: name of the weights, with which the prefix cache is salted: it never serves a prefix that other
                weights have computed.
            adapter: name of the adapter to sample with; empty: without one.
        """
        policy = RemotePolicy(
            self.base_url,
            adapter or self.model,
            key=self._key,
            timeout_seconds=self._timeout_seconds,
            retries=ONCE,
            client=self._http,
            extra_fields={
                "cache_salt": weights,
                "stop_token_ids": self._eos_ids,
                # A tag can be a special token of the model, and a stop string that holds one would not be found.
                "skip_special_tokens": False,
            },
        )
        return await policy.generate(prompt_ids, sampling, rollout_id)

    async def score(self, ids: Sequence[int], adapter: str = "") -> list[float]:
        """Return the log-probability of ``ids[1:]`` at temperature 1, each given everything before it."""
        model = adapter or self.model
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await self._call("POST", "/v1/completions", self._timeout_seconds, body)
        try:
            found = answer["choices"][0]["prompt_logprobs"]
            scores = [float(entry[str(token)]["logprob"]) for entry, token in zip(found[1:], ids[1:], strict=True)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServiceError(f"{self.base_url} answered without the prompt's log-probabilities: {error!r}") from error
        if not all(map(math.isfinite, scores)):
            raise ServiceError(f"{self.base_url} returned a log-probability that is no number")
        return scores

    async def generate_once(self) -> None:
        """Make the first generation, which is slow."""
        await self.find_model()
        await self.score([1, 2])

    def move(self, base_url: str) -> None:
        """Call the server at another address from now on."""
        self.base_url = base_url.rstrip("/")
        self._http.base_url = self.base_url

    async def is_healthy(self) -> bool:
        """Whether the server answers that it works."""
        try:
            return (await self._http.get("/health", timeout=STATE_SECONDS)).is_success
        except httpx.HTTPError:
            return False

    async def wait_until_healthy(self) -> None:
        """Ask again and again whether the server works."""
        while not await self.is_healthy():
            await asyncio.sleep(POLL_SECONDS)

    async def find_model(self) -> int:
        """Remember the name of the model that the server offers; return the most tokens of prompt and answer."""
        answer = await self._call("GET", "/v1/models", STATE_SECONDS)
        try:
            offered = answer["data"][0]
            self.model = str(offered["id"])
            return int(offered["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServiceError(f"{self.base_url} does not describe its model: {error!r}") from error

    async def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text`` in the server's tokenizer, without special tokens added."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return list((await self._call("POST", "/tokenize", STATE_SECONDS, body)).get("tokens", ()))

    async def served_weights(self) -> str:
        """Return the name that the last update gave to the weights; "default" before the first one."""
        return str((await self._call("GET", "/weight_info", STATE_SECONDS)).get("weight_version"))

    async def worker_count(self) -> int:
        """Return the number of the server's processes that hold weights."""
        return int((await self._call("GET", "/get_world_size?include_dp=true", STATE_SECONDS)).get("world_size", 1))

    async def abort_turns(self) -> None:
        """Have the server answer every request that it knows with the tokens that it has."""
        await self._call("POST", "/abort_requests", STATE_SECONDS, {})

    async def pause(self) -> None:
        """Let running requests end, and then stop sampling, with an empty prefix cache."""
        await self._call("POST", "/pause?mode=wait&clear_cache=true", self._timeout_seconds)

    async def resume(self) -> None:
        """Sample again."""
        await self._call("POST", "/resume", STATE_SECONDS)

    async def init_transfer(self, info: Mapping[str, Any]) -> None:
        """Prepare the transfer of weights."""
        await self._call("POST", "/init_weight_transfer_engine", self._timeout_seconds, {"init_info": dict(info)})

    async def start_update(self) -> None:
        """Start to replace weights; only a restart ends an update that failed."""
        await self._call("POST", "/start_weight_update", self._timeout_seconds)

    async def update(self, info: Mapping[str, Any]) -> None:
        """Have the server receive weights."""
        await self._call("POST", "/update_weights", self._timeout_seconds, {"update_info": dict(info)})

    async def finish_update(self, name: str) -> None:
        """Use the received weights from now on, under this name."""
        await self._call("POST", "/finish_weight_update", self._timeout_seconds, {"weight_version": name})

    async def adapters(self) -> dict[str, str]:
        """Return the folder of every adapter that the server has loaded, by its name."""
        answer = await self._call("GET", "/v1/models", STATE_SECONDS)
        try:
            return {str(card["id"]): str(card["root"]) for card in answer["data"] if card.get("parent")}
        except (KeyError, TypeError, AttributeError) as error:
            raise ServiceError(f"{self.base_url} does not list its adapters: {error!r}") from error

    async def load_adapter(self, name: str, folder: str) -> None:
        """Have the server load an adapter under a name that it does not have yet."""
        # Never in place: vLLM would read the files again at every step, and serve prefixes that the old ones computed.
        await self._send(
            "POST", "/v1/load_lora_adapter", self._timeout_seconds, {"lora_name": name, "lora_path": folder}
        )

    async def unload_adapter(self, name: str) -> None:
        """Have the server forget an adapter."""
        await self._send("POST", "/v1/unload_lora_adapter", STATE_SECONDS, {"lora_name": name})

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _call(
        self, verb: str, path: str, seconds: float, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        response = await self._send(verb, path, seconds, body)
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise ServiceError(f"{response.url} did not answer with JSON") from error
        if not isinstance(answer, dict):
            raise ServiceError(f"{response.url} did not answer with a JSON object")
        return answer

    async def _send(self, verb: str, path: str, seconds: float, body: Mapping[str, Any] | None) -> httpx.Response:
        url = f"{self.base_url}{path}"
        try:
            response = await self._http.request(verb, path, json=body, timeout=seconds)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"{url} did not answer in time") from error
        except httpx.RequestError as error:
            raise Unavailable(f"{url} cannot be reached: {error or type(error).__name__}", None) from error
        if not response.is_success:
            raise from_http(response.status_code, response.headers, response.text, url)
        return response
