"""Opens memory that a trainer on the same machine shares: by CUDA's handles, or as a file of the trainer's process.

It is imported in vLLM's environment, which has neither searchrl nor services.
"""

import base64
from typing import Any

import torch


def open_shared(handle: dict[str, Any]) -> torch.Tensor:
    """Return the bytes behind a handle of ``ipc_transfer.SharedBuffer``, shape (size,), uint8.

    Raises:
        OSError, RuntimeError: this process cannot see that memory: it runs on another machine, as another user, or in a
            container with processes or GPUs of its own.
    """
    if "path" in handle:
        return torch.from_file(handle["path"], shared=True, size=handle["size"], dtype=torch.uint8)
    # The values that PyTorch's own pickles carry. Nothing that comes over HTTP is unpickled here.
    torch.cuda.init()
    storage = torch.UntypedStorage._new_shared_cuda(
        handle["gpu"],
        base64.b64decode(handle["memory"]),
        handle["size"],
        handle["offset"],
        base64.b64decode(handle["counter"]),
        handle["counter_offset"],
        base64.b64decode(handle["event"]),
        handle["has_event"],
    )
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{handle['gpu']}").set_(storage)  # pyright: ignore
