"""Shards a model over ranks (FSDP2), so that each holds its part of the weights, gradients and moments.

Weights, gradients and moments are float32. Each layer is gathered in the dtype of the computation just before it runs,
and freed behind it; its gradients are summed over the ranks in float32 while the backward pass continues. With ranks 0
and 1, a weight of shape [7, 3] is rows 0 to 3 on rank 0 and rows 4 to 6 on rank 1.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from searchrl.errors import ConfigurationError
from services.trainer.learner.device import DTYPES, LearnerSettings, require_device
from services.trainer.learner.ranks import Ranks, device_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_sharded(settings: LearnerSettings, ranks: Ranks) -> bool:
    """Whether models are sharded: not in one process that computes with the weights as they are held."""
    if settings.adapter.kind == "qlora":
        return False
    return ranks.size > 1 or settings.dtype != "float32" or settings.offload != "none"


def shard_layers(
    root: nn.Module, model: "PreTrainedModel", settings: LearnerSettings, ranks: Ranks, exact: Sequence[nn.Module] = ()
) -> None:
    """Shard every layer of ``model`` as a group of its own, and the rest of ``root`` as one more.

    The rest are the embeddings and the head, which may be one tied weight and so must be in one group. The modules of
    ``exact`` compute in float32.
    """
    mesh = device_mesh(ranks, settings.device)
    mixed = MixedPrecisionPolicy(
        param_dtype=DTYPES[settings.dtype], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    float32 = MixedPrecisionPolicy(cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if settings.offload == "cpu" else OffloadPolicy()
    for module in [*exact, *find_layers(root, model), root]:
        # Freed behind the forward pass also at the root: scoring has no backward pass that would free it, and a later
        # pass must not find the weights from before an optimizer step.
        policy = float32 if module in exact else mixed
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
        # Losses are divided by counts of the complete batch, so the sum over ranks is its gradient, not the mean.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def find_layers(root: nn.Module, model: "PreTrainedModel") -> list[nn.Module]:
    """The transformer's layers, which transformers names for every kind of model."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in root.modules() if type(module).__name__ in names]


def compile_layers(root: nn.Module, model: "PreTrainedModel", settings: LearnerSettings) -> None:
    """Compile each layer, before it is sharded, if the settings say so."""
    if settings.compile:
        for layer in find_layers(root, model):
            layer.compile(dynamic=True)  # micro-batches have many shapes


def allocate(root: nn.Module, model: "PreTrainedModel", settings: LearnerSettings) -> None:
    """Give a sharded model on the meta device its memory: this rank's shards without values, and complete buffers.

    Raises:
        ConfigurationError: a buffer cannot be computed again from the configuration.
    """
    shared = _shared_names(root)
    device = torch.device("cpu") if settings.offload == "cpu" else require_device(settings.device)
    root.to_empty(device=device)
    for names in shared:  # ``to_empty`` gives every name a parameter of its own
        parameter = root.get_parameter(names[0])
        for name in names[1:]:
            owner, _, attribute = name.rpartition(".")
            root.get_submodule(owner)._parameters[attribute] = parameter
    for module in root.modules():
        buffers = {name: buffer for name, buffer in module.named_buffers(recurse=False)}
        if buffers:
            _fill_buffers(module, buffers, model)
    if settings.offload == "cpu":
        for module in root.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(settings.device)


def _fill_buffers(module: nn.Module, buffers: Mapping[str, Tensor], model: "PreTrainedModel") -> None:
    # No file holds these buffers, such as the frequencies of rotary positions. Transformers computes them in
    # ``_init_weights``; one that it leaves out keeps what was there before, and so differs between the two rounds.
    found: list[dict[str, Tensor]] = []
    for value in (0, 1):
        for buffer in buffers.values():
            buffer.fill_(value)
        model._init_weights(module)
        found.append({name: buffer.clone() for name, buffer in buffers.items()})
    for name in buffers:
        if not torch.equal(found[0][name], found[1][name]):
            raise ConfigurationError(
                f"{type(model).__name__} cannot be sharded: the buffer {name} of {type(module).__name__} is in no file "
                "of the model; use learner.ranks 0 and learner.dtype float32"
            )


def _shared_names(root: nn.Module) -> list[list[str]]:
    """Names of each parameter that has several: tied weights."""
    names: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in place; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> slice:
    """The rows of the complete tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return slice(0, tensor.shape[0] if tensor.dim() else None)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0])


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a complete tensor, sharded as ``like``; the tensor itself if it has another shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    part = torch.zeros_like(like, dtype=tensor.dtype)
    local_part(part).copy_(tensor[local_rows(like)])
    return part


def complete(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The complete tensor, gathered from all ranks, each of which must ask for it; cast before it travels."""
    cast = tensor if dtype is None else tensor.to(dtype)
    return cast.full_tensor() if isinstance(cast, DTensor) else cast
