"""How does a Hugging Face model folder become a module, and a module a folder?"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from torch import nn

from searchrl.errors import ConfigurationError
from services.trainer.learner.settings import LearnerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPANION_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "generation_config.json", "searcher.json",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def require_device(name: str) -> torch.device:
    """Return the device.

    Raises:
        ConfigurationError: this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigurationError(
            f"device {name} was asked for, but this machine has {count} CUDA devices; use device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name} is not supported; use cpu, cuda or cuda:N")
    return device


def load_model(folder: Path, settings: LearnerSettings) -> "PreTrainedModel":
    """Load a causal language model from a local folder; nothing is downloaded.

    Dropout stays off, so that a training pass gives the log-probabilities that the sampler saw.

    Raises:
        ConfigurationError: the folder holds no usable model, or the device is missing.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = require_device(settings.device)
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder} is not a model folder: it has no config.json")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[settings.dtype], attn_implementation=settings.attention, local_files_only=True
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigurationError(f"cannot load the model in {folder}: {error}") from error
    if getattr(model.config, "final_logit_softcapping", None):
        raise ConfigurationError(f"the model in {folder} caps its logits, which training does not support")
    model.eval()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    cast(nn.Module, model).to(device)
    return model


def export_model(model: "PreTrainedModel", source_folder: Path, folder: Path, dtype: str) -> None:
    """Write config and weights in ``dtype``, and copy tokenizer and searcher profile from the source folder.

    The two folders may be the same. Files are replaced one by one, each as a whole, so that readers of the folder
    and an interruption never see half a file.
    """
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    copy = AutoModelForCausalLM.from_config(model.config, dtype=DTYPES[dtype])
    copy.load_state_dict({name: tensor.to(DTYPES[dtype]) for name, tensor in model.state_dict().items()})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
        fresh = Path(name)
        copy.save_pretrained(fresh)
        for companion in COMPANION_FILES:
            if (source_folder / companion).is_file():
                shutil.copyfile(source_folder / companion, fresh / companion)
        for path in fresh.iterdir():
            path.replace(folder / path.name)
