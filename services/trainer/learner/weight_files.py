"""Reads parts of a model folder's safetensors files, and writes one tensor after the other into a file of its own."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from searchrl.errors import ConfigurationError

SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class WeightFiles:
    """The tensors of all safetensors files of a folder; only what is asked for is read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            ConfigurationError: a file is damaged.
        """
        self._files: dict[str, safe_open] = {}
        for path in paths:
            try:
                file = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise ConfigurationError(f"{path} is damaged: {error}") from error
            self._files.update(dict.fromkeys(file.keys(), file))

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Open all files of a model folder."""
        return cls(sorted(folder.glob("*.safetensors")))

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a tensor; no others are read."""
        if not self.shape(name):
            return self._files[name].get_tensor(name)
        return self._files[name].get_slice(name)[rows]


class PublishedFile(Mapping[str, Tensor]):
    """The tensors of one safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = WeightFiles([path])

    def __getitem__(self, name: str) -> Tensor:
        return self._files.rows(name, slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files.names()))

    def __len__(self) -> int:
        return len(self._files.names())


def write_weights(path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, tensors: Iterator[Tensor]) -> str:
    """Write tensors, given in the order of their names, one by one; return their fingerprint.

    The file never needs more memory than its largest tensor. The fingerprint is that of ``fingerprint_tensors``.
    """
    # The format: eight bytes with the length of a header in JSON, the header, and the tensors' bytes end to end.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in sorted(shapes):
        size = math.prod(shapes[name]) * dtype.itemsize
        entry = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shapes[name]), "data_offsets": [start, start + size]}
        header[name], start = entry, start + size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of eight
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in zip(sorted(shapes), tensors, strict=True):
            data = tensor_bytes(tensor.to(dtype))
            update_fingerprint(digest, name, dtype, tensor.shape, data)
            file.write(data)
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; numpy has no bfloat16, so they are viewed as integers."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def update_fingerprint(
    digest: "hashlib._Hash", name: str, dtype: torch.dtype, shape: torch.Size, data: memoryview
) -> None:
    """Add one tensor to a fingerprint."""
    digest.update(f"{name}|{dtype}|{tuple(shape)}|".encode())
    digest.update(data)


def fingerprint_files(files: WeightFiles) -> str:
    """Fingerprint of the tensors in files, read one by one; equal to ``fingerprint_tensors`` of all of them."""
    digest = hashlib.sha256()
    for name in sorted(files.names()):
        tensor = files.rows(name, slice(None))
        update_fingerprint(digest, name, tensor.dtype, tensor.shape, tensor_bytes(tensor))
    return digest.hexdigest()
