"""The text of ``--dry-run``: what a run would do, need and reach."""

import psutil

from services.trainer.rewards.build_reward import needs_generator
from services.trainer.run_config import RunConfig

_TRAINED_COPIES = 4  # weights, gradients and AdamW's two moments, all float32
_ENGINE_COPIES = 2  # the rollout engine's weights, and the copy under way to it


def run_plan(config: RunConfig) -> str:
    """Sizes, reward, algorithm and files of a run, in sentences."""
    rollouts, update = config.rollouts, config.update
    per_step = rollouts.groups_per_step * rollouts.group_size
    optimiser_steps = update.mini_batches * update.epochs
    mode = (
        "strictly synchronous" if rollouts.max_staleness == 0 else f"at most {rollouts.max_staleness} versions behind"
    )
    lines = [
        f"run {config.name}: {config.steps} steps from {config.model}, seed {config.seed}",
        f"questions: {config.questions}",
        f"each step: {rollouts.groups_per_step} questions x {rollouts.group_size} rollouts = {per_step}, {mode}",
        f"reward: {_reward(config)}",
        f"algorithm: {config.algorithm.kind}, {optimiser_steps} optimiser steps of {update.optim.kind} "
        f"at {update.optim.learning_rate}, loss {update.loss.policy}",
        f"services: retriever {config.services.retriever}, generator {config.services.generator or 'none'}",
        f"engine: {config.engine.kind}; learner: {config.learner.device}, {config.learner.dtype}",
        f"memory: {_memory(config)}",
        f"files: {config.output}, a checkpoint every {config.checkpoints.every} steps, {config.checkpoints.keep} kept",
    ]
    return "\n".join(lines) + "\n"


def _reward(config: RunConfig) -> str:
    """The reward, with the prices that it really has."""
    reward = config.reward
    if not needs_generator(reward):
        return reward.kind
    prices = f"{reward.document_cost:g} of a success per document, {reward.search_cost:g} per search"
    mode = f" ({reward.gain_mode}, against {reward.baseline_file})" if reward.baseline_file else ""
    return f"{reward.kind}{mode}, less {prices}, less {reward.malformed_penalty:g} if badly formed"


def _memory(config: RunConfig) -> str:
    """Weights, gradients, moments and the copies beside them; activations and caches come on top."""
    bytes_on_disk = sum(path.stat().st_size for path in config.model.glob("*.safetensors"))
    if not bytes_on_disk:
        return f"unknown: there are no weights in {config.model}"
    copies = _TRAINED_COPIES * (2 if config.algorithm.kind == "ppo" else 1)
    copies += 1 if config.update.loss.kl_coefficient or config.update.gae.kl_coefficient else 0
    needed = bytes_on_disk * (copies + _ENGINE_COPIES) / 2**30
    free = psutil.virtual_memory().available / 2**30
    text = f"at least {needed:.1f} GiB if the weights are float32 on disk (twice that for 16-bit weights)"
    return f"{text}; {free:.1f} GiB are free" + (": NOT ENOUGH" if needed > free else "")
