"""Defines the REST routes of OpenAI's completions protocol, with token ids in and out, over the torch engine."""

import time
import uuid
from collections.abc import Sequence
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from searchrl.agent.types import Generation, Sampling, Tokenizer
from searchrl.errors import InvalidRequest
from services.trainer.engines.torch_engine import TorchEngine


class CompletionBody(BaseModel):
    """The fields that are read, with OpenAI's defaults; others are ignored, and the one model answers to every name."""

    model_config = ConfigDict(extra="ignore")

    # The four forms of OpenAI's protocol; ``RemotePolicy`` sends token ids, so that the server tokenizes nothing anew.
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: PositiveInt = 16
    temperature: NonNegativeFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    # vLLM's fields, as are return_token_ids and include_stop_str_in_output; -1 means all tokens.
    top_k: int = -1
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: NonNegativeInt | None = None
    return_token_ids: bool = False
    include_stop_str_in_output: bool = False
    stream: bool = False
    n: int = 1

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens, self.stops(), self.seed)


def completions_router(engine: TorchEngine, tokenizer: Tokenizer, model_name: str) -> APIRouter:
    """``/v1/completions`` and ``/v1/models``; probes are those of every service."""
    router = APIRouter(tags=["completions"])

    @router.post("/v1/completions")
    async def complete(
        body: CompletionBody, x_rollout_id: Annotated[str, Header(description="Keeps the cache of a rollout.")] = ""
    ) -> Response:
        # Refused and not ignored: a client that asks for four choices must not take one for all of them.
        if body.stream or body.n != 1:
            raise InvalidRequest("this engine answers with one choice and without streaming")
        # The next turn of a rollout begins with this prompt and its reply; by the rollout's id the engine finds what it
        # has cached for them.
        prompt_ids = _prompt_ids(body, tokenizer)
        generation = await engine.generate(prompt_ids, body.sampling(), x_rollout_id)
        fingerprint = await _fingerprint(engine, generation)
        answer = _answer(body, prompt_ids, generation, tokenizer, fingerprint, model_name)
        return Response(orjson.dumps(answer), media_type="application/json")

    @router.get("/v1/models")
    async def models() -> dict[str, object]:
        served = {"id": model_name, "object": "model", "created": 0, "owned_by": "searchrl"}
        return {"object": "list", "data": [served]}

    return router


def _prompt_ids(body: CompletionBody, tokenizer: Tokenizer) -> Sequence[int]:
    """The token ids of the prompt, given as text, as ids, or as a list with one of these."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if prompt and isinstance(prompt[0], int):
        return [token for token in prompt if isinstance(token, int)]
    if len(prompt) != 1:
        raise InvalidRequest("this engine takes one prompt per request")
    (only,) = prompt
    return tokenizer.encode(only) if isinstance(only, str) else [] if isinstance(only, int) else only


def _answer(
    body: CompletionBody,
    prompt_ids: Sequence[int],
    generation: Generation,
    tokenizer: Tokenizer,
    fingerprint: str,
    model_name: str,
) -> dict[str, object]:
    # The ids keep the stop string, and so does the trajectory: the text alone follows OpenAI's protocol, which leaves
    # it out.
    text = tokenizer.decode(generation.ids)
    if not body.include_stop_str_in_output:
        text = _without_stop(text, body.stops())
    choice: dict[str, object] = {"index": 0, "text": text, "finish_reason": generation.finish_reason, "logprobs": None}
    if body.logprobs is not None:
        tokens = [tokenizer.decode([token]) for token in generation.ids]
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": list(generation.logprobs), "top_logprobs": None}
    if body.return_token_ids:
        choice["token_ids"] = list(generation.ids)
        choice["prompt_token_ids"] = list(prompt_ids)
    used = {"prompt_tokens": len(prompt_ids), "completion_tokens": len(generation.ids)}
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model_name,
        "system_fingerprint": fingerprint,
        "choices": [choice],
        "usage": {**used, "total_tokens": len(prompt_ids) + len(generation.ids)},
    }


async def _fingerprint(engine: TorchEngine, generation: Generation) -> str:
    """Return the policy version that sampled, and the fingerprint of the weights."""
    # The version is the one that sampled; the weights do not change while this server runs, so their fingerprint is
    # current.
    health = await engine.health()
    version = generation.versions[0] if generation.versions else health.version
    return f"v{version}:{health.fingerprint}"


def _without_stop(text: str, stops: Sequence[str]) -> str:
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
