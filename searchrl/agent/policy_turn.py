"""Samples one turn of the policy, and continues it if the engine returns it in parts."""

from collections.abc import Sequence
from dataclasses import replace

from searchrl.agent.ports import Generation, Policy, Sampling
from searchrl.agent.turn_seeds import turn_seed
from searchrl.errors import ServiceError, Unavailable

MAX_EMPTY_PARTS = 3
"""Aborted parts in a row without a single token before the rollout fails. One may be bad luck with a weight update;
without a bound, an engine that aborts every request would keep the rollout in this loop forever."""


async def sample_turn(
    policy: Policy, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str, turn: int
) -> Generation:
    """Sample until the turn is finished.

    An engine that is paused for new weights may return what it has with finish reason "aborted"; the turn then
    continues from the kept tokens, each with the version that sampled it. Tokens that were sampled count against
    ``sampling.max_tokens``: with a budget of 500 and 120 tokens before the abort, 380 are left.

    Raises:
        searchrl.errors.ServiceError: the engine failed, gave up several times without a token, or contradicted itself.
    """
    part = await _sample(policy, prompt_ids, sampling, rollout_id, turn_seed(sampling.seed, turn))
    turn_so_far = part
    empty_parts = 0
    attempt = 0
    while part.finish_reason == "aborted":
        empty_parts = 0 if part.ids else empty_parts + 1
        if empty_parts == MAX_EMPTY_PARTS:
            raise Unavailable("the policy aborted a generation repeatedly without sampling a token")
        left = sampling.max_tokens - len(turn_so_far.ids)
        if left < 1:
            return replace(turn_so_far, finish_reason="length")
        # A seed of its own per part: the same seed again would repeat the random numbers of the part before.
        attempt += 1
        seed = turn_seed(sampling.seed, turn, attempt)
        rest = replace(sampling, max_tokens=left)
        part = await _sample(policy, [*prompt_ids, *turn_so_far.ids], rest, rollout_id, seed)
        turn_so_far = Generation(
            turn_so_far.ids + part.ids,
            turn_so_far.logprobs + part.logprobs,
            turn_so_far.versions + part.versions,
            part.finish_reason,
        )
    return turn_so_far


async def _sample(
    policy: Policy, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str, seed: int | None
) -> Generation:
    if seed is not None:
        sampling = replace(sampling, seed=seed)
    generation = await policy.generate(tuple(prompt_ids), sampling, rollout_id)
    if not len(generation.ids) == len(generation.logprobs) == len(generation.versions):
        raise ServiceError(
            f"the policy returned {len(generation.ids)} ids, {len(generation.logprobs)} log-probabilities "
            f"and {len(generation.versions)} versions"
        )
    return generation
