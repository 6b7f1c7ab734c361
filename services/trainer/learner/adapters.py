"""Trains a low-rank adapter beside a frozen model (LoRA, 2106.09685), with the layers of peft.

A layer with the weight W computes W x + (alpha / rank) B A x. A and B are trained; B starts at 0, so the first policy
is that of the model folder. Exports get W + (alpha / rank) B A under the names of the model folder, and engines either
that or A and B alone.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from searchrl.errors import ConfigurationError
from services.trainer.learner.device import AdapterSettings, LoraSettings
from services.trainer.learner.sharding import complete, find_layers, local_part, local_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"  # of the only adapter, in peft's names
BASE = ".base_layer"  # what peft puts between the name of an adapted layer and its weight
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
SAVED_PREFIX = "base_model.model."
"""What the names in ``ADAPTER_FILE`` begin with, wherever peft saved it, and where other programs look for it."""


def add_adapter(model: "PreTrainedModel", settings: AdapterSettings) -> None:
    """Freeze the model and put an adapter beside its layers, on the model's device and without values.

    Raises:
        ConfigurationError: no layer has one of the names.
    """
    if not isinstance(settings, LoraSettings):
        return
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(peft_config(model, settings), model, low_cpu_mem_usage=model.device.type == "meta")
    except ValueError as error:
        raise ConfigurationError(f"learner.adapter.targets {', '.join(settings.targets)}: {error}") from error
    for layer in adapter_layers(cast(nn.Module, model)).values():
        for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
            part.to(torch.float32)  # whatever the frozen weights are held in


def peft_config(model: "PreTrainedModel", settings: LoraSettings) -> Any:
    """The adapter as peft describes it."""
    from peft import LoraConfig

    adapted = {name.rpartition(".")[2] for name in adapter_layers(cast(nn.Module, model))}
    targets = sorted(settings.targets or adapted or _linear_names(model))
    alpha: Any = settings.alpha  # a fraction too: peft declares int, and multiplies
    return LoraConfig(
        r=settings.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def _linear_names(model: "PreTrainedModel") -> set[str]:
    """Names of the linear layers inside the transformer's layers, without those of embeddings and head."""
    return {
        name.rpartition(".")[2]
        for layer in find_layers(cast(nn.Module, model), model)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


def count_adapter_parameters(model: "PreTrainedModel", settings: LoraSettings) -> int:
    """How many parameters the adapter of a model has."""
    names = set(settings.targets) or _linear_names(model)
    return sum(
        settings.rank * (module.in_features + module.out_features)
        for name, module in cast(nn.Module, model).named_modules()
        if name.rpartition(".")[2] in names and isinstance(module, nn.Linear)
    )


def count_linear_parameters(model: "PreTrainedModel") -> int:
    """How many parameters the matrices of linear layers have that are held in 4 bits: all but embeddings and head."""
    return sum(
        module.weight.numel()
        for layer in find_layers(cast(nn.Module, model), model)
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )


def adapter_layers(root: nn.Module) -> dict[str, Any]:
    """Every adapted layer, by its name."""
    return {name: module for name, module in root.named_modules() if hasattr(module, "lora_A")}


@torch.no_grad()
def fill_adapter(root: nn.Module, seed: int) -> None:
    """Draw A and set B to 0."""
    # By name and from generators of their own, so that the values depend on the seed alone, not on the number of ranks
    # or on what was drawn before.
    for name, layer in adapter_layers(root).items():
        matrix = layer.lora_A[NAME].weight
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}|{name}".encode()))
        values = torch.empty(matrix.shape)
        nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)  # peft's own distribution
        local_part(matrix).copy_(values[local_rows(matrix)])
        local_part(layer.lora_B[NAME].weight).zero_()


@contextmanager
def adapter_off(root: nn.Module) -> Iterator[None]:
    """Compute without the adapter inside the block."""
    # The flag itself, because peft's ``enable_adapters`` also changes what is trained, which a sharded model does not
    # allow between passes.
    layers = adapter_layers(root).values()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def check_adapter(root: nn.Module, score: Any) -> None:
    """Prove that the adapter acts: not at all while B is 0, and as soon as B is not.

    Args:
        score: returns the log-probabilities of a few tokens, computed with the adapter.

    Raises:
        ConfigurationError: it does not.
    """
    layers = adapter_layers(root)
    if not layers:
        return
    with adapter_off(root):
        without = score()
    if not torch.equal(score(), without):
        raise ConfigurationError("the adapter changes log-probabilities although its matrices B are 0")
    for layer in layers.values():
        local_part(layer.lora_B[NAME].weight).fill_(0.01)
    moved = score()
    for layer in layers.values():
        local_part(layer.lora_B[NAME].weight).zero_()
    if torch.equal(moved, without):
        raise ConfigurationError("the adapter does not act: log-probabilities do not depend on its matrices B")


def plain_name(name: str) -> str:
    """The name that a weight has in the model folder."""
    return name.replace(f"{BASE}.", ".")


def merged_weights(root: nn.Module) -> dict[str, nn.Parameter]:
    """The frozen or trained weights of the model itself, by their names in the model folder."""
    return {plain_name(name): p for name, p in root.named_parameters() if ".lora_" not in name}


def gather_each(root: nn.Module, device: str, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Gather one complete weight after the other, by name, with the adapter merged; no rank holds all of them at once.

    All ranks must take every step of the iteration.
    """
    layers = adapter_layers(root)
    for name, parameter in sorted(merged_weights(root).items()):
        layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        # what is offloaded to main memory is gathered on the GPU, where the ranks' connection is faster
        tensor = _restore_from_4_bits(parameter).detach().to(device)
        if layer is None:
            yield name, complete(tensor, dtype)
            continue
        first, second = (complete(part[NAME].weight.detach().to(device)) for part in (layer.lora_A, layer.lora_B))
        merged = complete(tensor).float() + layer.scaling[NAME] * (second @ first)
        yield name, merged if dtype is None else merged.to(dtype)


def weight_shapes(root: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the complete weights, by their names in the model folder."""
    weights: dict[str, Any] = dict(merged_weights(root))
    return {
        name: weight.quant_state.shape if hasattr(weight, "quant_state") else weight.shape
        for name, weight in weights.items()
    }


def _restore_from_4_bits(weight: Any) -> Tensor:
    """The weight with which a layer that is held in 4 bits computes; others as they are."""
    if not hasattr(weight, "quant_state"):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def gather_adapter(root: nn.Module, device: str) -> Iterator[tuple[str, Tensor]]:
    """Gather the adapter's matrices, under the names of a saved adapter."""
    for name, parameter in sorted(adapter_parameters(root).items()):
        yield name, complete(parameter.detach().to(device))


def adapter_parameters(root: nn.Module) -> Mapping[str, nn.Parameter]:
    """The adapter's matrices, by the names of a saved adapter."""
    return {
        SAVED_PREFIX + name.replace(f".{NAME}.", "."): parameter
        for name, parameter in root.named_parameters()
        if ".lora_" in name
    }


def adapter_config(model: "PreTrainedModel", settings: LoraSettings, base: Path) -> dict[str, object]:
    """The content of ``ADAPTER_CONFIG_FILE``, as peft and vLLM read it."""
    config = peft_config(model, settings)
    config.base_model_name_or_path, config.inference_mode = str(base), True
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}


def write_adapter_config(config: Mapping[str, object], folder: Path) -> None:
    """Write ``ADAPTER_CONFIG_FILE`` into the folder of an adapter."""
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
