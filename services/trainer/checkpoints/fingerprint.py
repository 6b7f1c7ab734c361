"""Computes a SHA-256 of model weights, equal for a learner, an engine and a model folder that hold the same ones."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of the names.

    Pass each weight once: ``dict(model.named_parameters())`` omits the second name of a tied weight, as a saved model
    folder does.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # as bytes, because numpy has no bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_folder(folder: Path) -> str:
    """Fingerprint of the safetensors files of a model folder."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return fingerprint_tensors(tensors)
