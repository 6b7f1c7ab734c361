"""Loads a Hugging Face model folder for training or sampling, writes one, and fingerprints its weights."""

import copy
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from searchrl.errors import ConfigurationError
from searchrl.storage.durable_files import fsync_path, rename_durably
from searchrl.tokenization.model_files import TOKEN_IDS, check_model_files, read_json
from services.trainer.learner.device import DTYPES, LearnerSettings, explain_memory_errors, require_device
from services.trainer.learner.output_layer import check_logits, probe_ids
from services.trainer.learner.weight_files import WeightFiles, fingerprint_files, tensor_bytes, update_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What an exported folder needs besides config and weights: the files of fast and slow tokenizers, the chat template and
# the searcher profile.
COMPANION_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "searcher.json",
)  # fmt: skip
GENERATION_FILE = "generation_config.json"
KEPT_APART = "tie_word_embeddings is true, but the folder holds two different tensors; they are kept apart"
ROWS_AT_ONCE = 4096  # of 8,192 float32 numbers are 128 MiB
logger = logging.getLogger(__name__)
CPU = torch.device("cpu")


def load_model(folder: Path, settings: LearnerSettings) -> "PreTrainedModel":
    """Load a complete causal language model for training, in float32.

    Dropout stays off, so that a training pass computes the log-probabilities of the sampler.

    Raises:
        ConfigurationError: the folder holds no usable model, or the device is missing.
    """
    device = require_device(settings.device)
    quantization = None
    dtype = torch.float32
    if settings.adapter.kind == "qlora":
        dtype = DTYPES[settings.dtype]  # nothing of the model itself is trained
        quantization = _quantization(dtype)
    with explain_memory_errors(f"the model in {folder}", "take a GPU with more memory, more ranks or a smaller model"):
        model = load_language_model(folder, dtype, settings.attention, device, quantization)
    enable_checkpointing(model, settings)
    return model


def _quantization(dtype: torch.dtype) -> Any:
    """How layers are held in 4 bits: as in QLoRA, in the data type NF4, its scales in 8 bits.

    Raises:
        ConfigurationError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigurationError("learner.adapter.kind qlora needs the package bitsandbytes: install searchrl[qlora]")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_language_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: torch.device = CPU,
    quantization: Any = None,
) -> "PreTrainedModel":
    """Load a causal language model from a local folder, in evaluation mode; nothing is downloaded, no code is run.

    Weights that the configuration ties but the folder stores separately are untied. The logits are checked on
    ``device``, because some kinds of attention run only on a GPU.

    Raises:
        ConfigurationError: the folder holds no complete model, or one whose logits cannot be computed here.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    check_model_files(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name them; check_tensors refuses them
            # layers are quantized where they are loaded, and cannot be moved afterwards
            **({"quantization_config": quantization, "device_map": {"": str(device)}} if quantization else {}),
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"cannot load the model in {folder}: {error}") from error
    model, loading = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    check_tensors(folder, loading)
    _untie_different_weights(model, folder)
    model.eval()
    if quantization is None:
        cast(nn.Module, model).to(device)
    refuse_capped_logits(model, folder)
    check_logits(model, probe_ids(model.config.get_text_config().vocab_size))
    return model


def build_empty_model(folder: Path, attention: str, dtype: torch.dtype) -> "PreTrainedModel":
    """Build the model that a folder describes, in evaluation mode and without memory for its weights.

    Raises:
        ConfigurationError: the folder describes no known language model, or lacks weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_files(folder)
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _untie_different_files(config, folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"cannot load the model in {folder}: {error}") from error
    refuse_capped_logits(model, folder)
    return model.eval()


def refuse_capped_logits(model: "PreTrainedModel", folder: Path) -> None:
    """Raises:
    ConfigurationError: the model caps its logits.
    """
    # Asked explicitly: cap x tanh(logit / cap) differs from a small logit by less than ``check_logits`` tolerates.
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise ConfigurationError(f"the model in {folder} caps its logits, which training does not support")


def check_tensors(folder: Path, loading: Mapping[str, Any]) -> None:
    """Refuse weights that would stay random, and files with weights that the model has no place for."""
    problems = (
        ("has no tensor", loading.get("missing_keys")),
        ("has tensors that its configuration does not declare:", loading.get("unexpected_keys")),
        ("has tensors whose shape differs from its configuration:", loading.get("mismatched_keys")),
    )
    for what, keys in problems:
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys or ())
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigurationError(f"the model in {folder} {what} {', '.join(names[:3])}{more}")


def _untie_different_weights(model: "PreTrainedModel", folder: Path) -> None:
    """Make the configuration match the weights, so that an export and every other reader keep both tensors."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = [part for part in {id(c): c for c in (model.config, model.config.get_text_config())}.values()]
    if head is None or head.weight is embeddings.weight or not any(part.tie_word_embeddings for part in tied):
        return
    logger.warning(KEPT_APART, extra={"data": {"folder": str(folder)}})
    for part in tied:
        part.tie_word_embeddings = False


def _untie_different_files(config: Any, folder: Path) -> None:
    """Untie a configuration whose folder holds two different tensors for embeddings and head."""
    files = WeightFiles.of_folder(folder)
    names = {name.rpartition(".")[0].rpartition(".")[2]: name for name in files.names() if name.endswith(".weight")}
    head, embeddings = names.get("lm_head"), names.get("embed_tokens") or names.get("wte")
    if not config.get_text_config().tie_word_embeddings or head is None or embeddings is None:
        return
    if not _equal_tensors(files, head, embeddings):
        logger.warning(KEPT_APART, extra={"data": {"folder": str(folder)}})
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False


def _equal_tensors(files: WeightFiles, first: str, second: str) -> bool:
    shape = files.shape(first)
    blocks = (slice(start, start + ROWS_AT_ONCE) for start in range(0, shape[0], ROWS_AT_ONCE))
    return shape == files.shape(second) and all(
        torch.equal(files.rows(first, rows), files.rows(second, rows)) for rows in blocks
    )


def enable_checkpointing(model: "PreTrainedModel", settings: LearnerSettings) -> None:
    """Recompute activations in the backward pass if the settings say so; dropout stays off."""
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        _let_layers_checkpoint(model)


def _let_layers_checkpoint(model: "PreTrainedModel") -> None:
    """Set only the flag that gradient checkpointing reads: ``model.train()`` would also turn dropout on."""
    # ``GradientCheckpointingLayer`` of transformers recomputes only if its own ``training`` is set. Its children, the
    # attention among them, stay in evaluation mode; a rate that the layer itself applies is set to 0.
    for module in cast(nn.Module, model).modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def export_model(model: "PreTrainedModel", source_folder: Path, folder: Path, dtype: str) -> None:
    """Write config and weights in ``dtype``, and copy tokenizer and searcher profile from the source folder."""
    from transformers import AutoModelForCausalLM

    # a second model, because converting the trained one in place would round the weights that training continues with
    converted = AutoModelForCausalLM.from_config(model.config, dtype=DTYPES[dtype])
    converted.load_state_dict({name: tensor.to(DTYPES[dtype]) for name, tensor in model.state_dict().items()})
    write_model_folder(converted.save_pretrained, source_folder, folder)


def write_config(model: "PreTrainedModel", folder: Path, dtype: str) -> None:
    """Write the ``config.json`` of an exported model."""
    config: Any = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], DTYPES[dtype]
    if hasattr(config, "quantization_config"):  # the weights are written as they compute, not in 4 bits
        del config.quantization_config
    config.save_pretrained(folder)


def write_model_folder(write: Callable[[Path], object], source_folder: Path, folder: Path) -> None:
    """Let ``write`` write config and weights, and copy the rest of a model folder from the source folder.

    Only the token ids of ``generation_config.json`` are kept: servers would apply its sampling defaults, and would not
    serve what was trained. The two folders may be the same. Files are replaced one by one, each atomically and
    durably, so that neither readers of the folder nor an interruption or a power cut see half a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # inside the target folder: a rename is atomic only within one file system
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
        fresh = Path(name)
        write(fresh)
        for companion in COMPANION_FILES:
            if (source_folder / companion).is_file():
                shutil.copyfile(source_folder / companion, fresh / companion)
        _write_generation_config(source_folder / GENERATION_FILE, fresh / GENERATION_FILE)
        for path in fresh.iterdir():
            fsync_path(path)
            rename_durably(path, folder / path.name)


def _write_generation_config(source: Path, target: Path) -> None:
    """Write only the ids that start, end and pad a text."""
    given = read_json(source) or read_json(target)
    kept = {name: given[name] for name in TOKEN_IDS if given.get(name) is not None}
    target.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of the names.

    Pass each weight once: ``dict(model.named_parameters())`` omits the second name of a tied weight, as a saved model
    folder does.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        update_fingerprint(digest, name, tensor.dtype, tensor.shape, tensor_bytes(tensor))
    return digest.hexdigest()


def fingerprint_folder(folder: Path) -> str:
    """Fingerprint of the safetensors files of a model folder."""
    return fingerprint_files(WeightFiles.of_folder(folder))
