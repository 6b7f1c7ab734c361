"""Opens the models of a run from one model folder: complete in one process, or sharded over ranks.

A sharded model is described without memory, sharded, and only then given memory and weights, so that no rank ever holds
more than its part: rank 1 of 4 reads a quarter of the rows of each tensor from the files.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from services.trainer.learner.adapters import add_adapter, check_adapter, fill_adapter, merged_weights, plain_name
from services.trainer.learner.critic import Critic, ValueModel
from services.trainer.learner.device import DTYPES, LearnerSettings, NoAdapter, explain_memory_errors, require_device
from services.trainer.learner.model_folder import build_empty_model, check_tensors, enable_checkpointing, load_model
from services.trainer.learner.output_layer import probe_ids
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.scoring import PolicyModel, ReferencePolicy, compute_logprobs
from services.trainer.learner.sharding import allocate, compile_layers, is_sharded, local_part, local_rows, shard_layers
from services.trainer.learner.train_batch import RowKey, TrainRow
from services.trainer.learner.weight_files import WeightFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_policy(
    folder: Path, settings: LearnerSettings, ranks: Ranks = ALONE, *, seed: int = 0, trained: bool = True
) -> PolicyModel:
    """Load a causal language model, and put an adapter beside it if the settings name one, which is proved to act.

    Args:
        seed: of the adapter's matrices.
        trained: hold it in float32; what is only computed with is held in the dtype of the passes.

    Raises:
        searchrl.errors.ConfigurationError: the folder or the device cannot be used.
    """
    adapter = settings.adapter if trained else NoAdapter()
    if not is_sharded(settings, ranks):
        model = load_model(folder, settings)
        add_adapter(model, adapter)
        policy = PolicyModel(model)
        compile_layers(policy, model, settings)
    else:
        model = build_empty_model(folder, settings.attention, _held_dtype(settings, trained))
        add_adapter(model, adapter)
        policy = PolicyModel(model)
        _shard_and_load(policy, model, folder, settings, ranks)
    fill_adapter(policy, seed)
    probe_1T = probe_ids(model.config.get_text_config().vocab_size)
    row = _probe_row(probe_1T[0])
    with torch.compiler.set_stance("force_eager"):  # a layer compiled for one short row may never be used again
        if is_sharded(settings, ranks):  # else the complete model was checked when it was loaded
            register_fsdp_forward_method(policy, "check_logits")
            # FSDP2 of torch 2.11 fails on a GPU if a method is called without arguments.
            policy.check_logits(probe_1T)
        check_adapter(policy, lambda: torch.from_numpy(compute_logprobs(policy, [row], settings, ranks)[0]))
    return policy


def _held_dtype(settings: LearnerSettings, trained: bool) -> torch.dtype:
    """What is trained needs float32; the rest is held in the dtype of the passes."""
    return torch.float32 if trained and settings.adapter.kind == "none" else DTYPES[settings.dtype]


def _probe_row(ids_T: Tensor) -> TrainRow:
    ids = ids_T.numpy()
    floats = np.zeros(len(ids), dtype=np.float32)
    mask = np.arange(len(ids)) > 0  # the first token has no context
    versions = kinds = np.zeros(len(ids), dtype=np.int64)
    return TrainRow(RowKey(0, 0), ids, mask, floats, versions, kinds, floats)


def open_reference(folder: Path, settings: LearnerSettings, ranks: Ranks = ALONE) -> ReferencePolicy:
    """Load the policy that the run starts from once more, to stay as it is.

    Raises:
        searchrl.errors.ConfigurationError: the folder or the device cannot be used.
    """
    policy = open_policy(folder, settings, ranks, trained=False)
    policy.requires_grad_(False)
    return ReferencePolicy(policy, settings, ranks)


def open_critic(folder: Path, settings: LearnerSettings, ranks: Ranks = ALONE, *, seed: int = 0) -> Critic:
    """Start a critic from the policy's own folder; the value head starts at 0.

    Raises:
        searchrl.errors.ConfigurationError: the folder or the device cannot be used.
    """
    if not is_sharded(settings, ranks):
        model = load_model(folder, settings)
        add_adapter(model, settings.adapter)
        module = _value_model(model)
        module.value_head.to(device=model.device)
        compile_layers(module, model, settings)
    else:
        model = build_empty_model(folder, settings.attention, _held_dtype(settings, trained=True))
        add_adapter(model, settings.adapter)
        with torch.device("meta"):
            module = _value_model(model)
        _shard_and_load(module, model, folder, settings, ranks, exact=[module.value_head])
        module.reset_head()
    fill_adapter(module, seed)
    return Critic(module, settings, ranks)


def _value_model(model: "PreTrainedModel") -> ValueModel:
    return ValueModel(cast(nn.Module, model.base_model), model.config.get_text_config().hidden_size)


def _shard_and_load(
    root: nn.Module,
    model: "PreTrainedModel",
    folder: Path,
    settings: LearnerSettings,
    ranks: Ranks,
    exact: Sequence[nn.Module] = (),
) -> None:
    require_device(settings.device)
    files = WeightFiles.of_folder(folder)
    _check_files(model, files, folder)
    advice = "take more ranks, GPUs with more memory, or a smaller model"
    with explain_memory_errors(f"a share of the model in {folder}", advice):
        compile_layers(root, model, settings)
        shard_layers(root, model, settings, ranks, exact)
        allocate(root, model, settings)
        _load_shards(root, model, files)
    enable_checkpointing(model, settings)


def _check_files(model: "PreTrainedModel", files: WeightFiles, folder: Path) -> None:
    """Refuse a folder that does not hold exactly the tensors of the model."""
    every_name = model.named_parameters(remove_duplicate=False)
    expected = {plain_name(name): parameter for name, parameter in every_name if ".lora_" not in name}
    ignored = tuple(model._keys_to_ignore_on_load_unexpected or ())
    known = files.names()
    check_tensors(
        folder,
        {
            "missing_keys": merged_weights(cast(nn.Module, model)).keys() - known,
            "unexpected_keys": {
                name for name in known - expected.keys() if not any(re.search(pattern, name) for pattern in ignored)
            },
            "mismatched_keys": {name for name in known & expected.keys() if files.shape(name) != expected[name].shape},
        },
    )


@torch.no_grad()
def _load_shards(root: nn.Module, model: "PreTrainedModel", files: WeightFiles) -> None:
    """Read this rank's rows of every tensor."""
    # A critic has another root and no head, so a tensor's name is that of its module in the language model.
    prefixes = {id(module): f"{name}." if name else "" for name, module in model.named_modules()}
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = plain_name(prefixes.get(id(module), "") + name)
            part = local_part(parameter)
            # tied weights are in the files under one of their names
            if id(module) in prefixes and full_name in files.names() and part.numel():
                part.copy_(files.rows(full_name, local_rows(parameter)))
