"""Estimates the time of a run: one layer of the model is timed on this machine, and the rest is counted.

Example: a layer takes 2 microseconds per token for a forward and backward pass. 192 rollouts of 512 tokens through 4
layers are 192 x 512 x 4 x 2e-6 = 0.8 s per epoch of a step.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from searchrl.platform.capacity import main_memory
from services.trainer.engines.torch_engine import TorchEngineSettings
from services.trainer.learner.device import DTYPES, require_device
from services.trainer.preflight.activations import single_layer
from services.trainer.settings import RunConfig

# Enough work for a stable time, and short beside the start of the process; a GPU needs more to be busy at all.
PROBE_OPERATIONS = {"cpu": 1e9, "cuda": 1e13}
FEWEST_TOKENS = 16  # products of fewer rows take as long as these
REPEATS = 3  # the fastest counts: others contain first calls and interruptions


class LayerSpeed(NamedTuple):
    """Seconds per token of one layer.

    Attributes:
        train: forward and backward pass of the learner.
        sample: decoding with as many rollouts at once as the engine has slots, on the CPU; 0 if servers do it.
        head: the output layer's cost, as a number of layers.
    """

    train: float
    sample: float
    head: float


class StepTime(NamedTuple):
    """Seconds of one training step if every rollout fills its context, without waiting for services."""

    sampling: float
    update: float
    total: float


def measure_speed(config: RunConfig, described: Any, context_tokens: int) -> LayerSpeed:
    """Time one layer of the model that the configuration of transformers describes.

    Raises:
        ConfigurationError: this machine lacks the learner's device.
        ValueError: transformers cannot build a single layer, or it does not fit into memory twice.
    """
    device = require_device(config.learner.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.learner.threads or threads)
    try:
        train, parameters = _time_training(config, described, device, context_tokens)
        sample = (
            _time_sampling(config, config.engine, described) if isinstance(config.engine, TorchEngineSettings) else 0.0
        )
    finally:
        torch.set_num_threads(threads)
    head = described.vocab_size * described.hidden_size / parameters
    return LayerSpeed(train, sample, head)


def _time_training(config: RunConfig, described: Any, device: torch.device, context_tokens: int) -> tuple[float, int]:
    """Seconds per token of a forward and backward pass, and the number of the layer's parameters."""
    layer, parameters = _build_layer(described, DTYPES[config.learner.dtype], device)
    most = PROBE_OPERATIONS[device.type] / (6 * parameters)  # 2 operations per weight forward, 4 backward
    tokens = max(FEWEST_TOKENS, min(config.learner.token_budget, int(most)))
    length = min(context_tokens, tokens)
    ids = torch.zeros(max(1, tokens // length), length, dtype=torch.long, device=device)
    taken = _time(lambda: layer(input_ids=ids, use_cache=False).logits.float().sum().backward(), device)
    return taken / ids.numel(), parameters


def _time_sampling(config: RunConfig, engine: TorchEngineSettings, described: Any) -> float:
    """Seconds per sampled token on the CPU in float32."""
    cpu = torch.device("cpu")
    layer, _ = _build_layer(described, torch.float32, cpu)
    together = min(engine.slots, config.rollouts.groups_per_step * config.rollouts.group_size)
    column = torch.zeros(together, 1, dtype=torch.long)
    with torch.no_grad():
        return _time(lambda: layer(input_ids=column, use_cache=False), cpu) / together


def estimate_step(config: RunConfig, speed: LayerSpeed, layers: int, context_tokens: int) -> StepTime:
    """Estimate the time of one training step from the speed of one layer."""
    tokens = config.rollouts.groups_per_step * config.rollouts.group_size * context_tokens
    depth = layers + speed.head
    sampling = tokens * depth * speed.sample
    # in forward passes: a backward pass takes as long as two
    trained = config.update.epochs * (4 if config.learner.gradient_checkpointing else 3)
    passes = trained + config.algorithm.needs_reference + (config.algorithm.loss.old_policy == "proximal")
    if config.algorithm.needs_critic:
        passes += trained + 1  # its values are computed before the update
    update = tokens * depth * speed.train / 3 * passes / max(1, config.learner.ranks)
    # with stale rollouts the engine samples while the learner trains
    overlapped = config.rollouts.max_staleness > 0
    return StepTime(sampling, update, max(sampling, update) if overlapped else sampling + update)


def describe_time(step: StepTime, steps: int, context_tokens: int) -> str:
    """The estimate as one line."""
    sampling = f"sampling {_duration(step.sampling)}" if step.sampling else "sampling by servers not included"
    return (
        f"at most about {_duration(step.total)} a step ({sampling}, update {_duration(step.update)}), "
        f"{_duration(step.total * steps)} for {steps} steps: every rollout would have {context_tokens} "
        "tokens; waiting for searches and answers is not included"
    )


def _build_layer(described: Any, dtype: torch.dtype, device: torch.device) -> tuple[Any, int]:
    """A model of one layer with a tiny vocabulary, and the number of the layer's parameters."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # random values would take longer than the probe
        model = AutoModelForCausalLM.from_config(single_layer(described), dtype=dtype)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if device.type == "cpu" and 8 * parameters > main_memory().available / 2:  # the weights and their gradients
        raise ValueError("there is not enough memory for one layer")
    model.to_empty(device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()  # what was in memory may contain numbers that are slow to multiply
    return model, parameters


def _time(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    taken: list[float] = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _duration(seconds: float) -> str:
    """Seconds as people say them: ``0.4 s``, ``12 min``, ``3.5 h``, ``4 days``."""
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}" if seconds / divisor < 10 else f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
