"""Estimates the memory and disk of a run from its model's headers and its settings; see docs/operations/sizing.md.

P parameters are 4 P bytes of weights, 4 P of gradients and 8 P of AdamW's moments, distributed over the ranks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_files import read_json
from services.trainer.learner.adapters import count_adapter_parameters, count_linear_parameters
from services.trainer.learner.device import DTYPES, LoraSettings
from services.trainer.learner.ranks import Ranks
from services.trainer.learner.sharding import is_sharded
from services.trainer.run_config import RunConfig

INDEX_FILE = "model.safetensors.index.json"
# Number of tensors, of the size of the hidden and the intermediate state, that a token leaves in one layer; measured.
HIDDEN_PER_LAYER, INTERMEDIATE_PER_LAYER = 19, 3
# 4 bits, and per block of 64 weights one scale of 8 bits, 256 of which share one of 32 (2305.14314): 4.127 bits
QUANTIZED_BYTES = 4.127 / 8
LOGIT_COPIES = 3  # logits, their log-probabilities, and the gradient; always float32


# Example: 1.5 billion parameters are 1.5e9 x 16 bytes = 22 GiB for weights, gradients and moments; a critic doubles
# that, and a reference adds 1.5e9 x 4 bytes = 5.6 GiB, or half of that with bfloat16. Four ranks hold a quarter each.
@dataclass(frozen=True, slots=True)
class RunSizes:
    """Estimated sizes in bytes.

    Attributes:
        learner: weights, gradients and moments, with critic and reference, and what a rank gathers; of each rank.
        offloaded: the part of it that is in main memory between the passes of a GPU; of each rank.
        activations: of one forward and backward pass of ``learner.token_budget`` tokens; of each rank.
        engine: the rollout engine's weights, and the two copies while new ones are published.
        slot: most memory for the keys and values of one rollout, reached when the pool grows to the full context.
        disk: the checkpoints that are kept, one more while it is written, and the final model.
    """

    learner: int
    offloaded: int
    activations: int
    engine: int
    slot: int
    disk: int


def estimate_sizes(config: RunConfig, parameters: int, context_tokens: int) -> RunSizes:
    """Estimate what a run needs.

    Raises:
        ConfigurationError: ``config.json`` describes no model that the engine can sample.
    """
    from transformers import AutoConfig

    from services.trainer.engines.kv_pool import most_slot_bytes

    try:
        model: Any = AutoConfig.from_pretrained(config.model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"cannot read {config.model / 'config.json'}: {error}") from error
    width = DTYPES[config.learner.dtype].itemsize
    ranks = Ranks(size=max(1, config.learner.ranks))
    models = 2 if config.algorithm.needs_critic else 1  # the critic is a model of its own
    trained, frozen = _count_trained(model, config, parameters, width)
    # weights, gradients and two moments, all float32
    state = models * (16 * trained + frozen)
    if config.algorithm.needs_reference and not frozen:  # else it is the policy without its adapter
        state += width * parameters
    state //= ranks.size
    gathered = (
        _estimate_gathered(parameters, model.get_text_config(), width) if is_sharded(config.learner, ranks) else 0
    )
    offloaded = state if config.learner.offload == "cpu" else 0
    return RunSizes(
        learner=state - offloaded + gathered,
        offloaded=offloaded,
        activations=_estimate_activations(config, model.get_text_config(), width),
        # float32: the weights, and two copies while new ones are published; a server's own weights are not here
        engine=parameters * 4 * (3 if config.engine.kind == "torch" else 2),
        slot=most_slot_bytes(model, context_tokens),
        # weights and two moments of 4 bytes each; the final model is float32
        disk=trained * 12 * models * (config.checkpoints.keep + 1) + parameters * 4,
    )


def _count_trained(described: Any, config: RunConfig, parameters: int, width: int) -> tuple[int, int]:
    """Number of trained parameters, and bytes of the model beside them, which is frozen if there is an adapter."""
    from transformers import AutoModelForCausalLM

    settings = config.learner.adapter
    if not isinstance(settings, LoraSettings):
        return parameters, 0
    with torch.device("meta"):  # allocates no memory
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    quantized = count_linear_parameters(model) if settings.kind == "qlora" else 0
    # What is not quantized is held in the dtype of the passes.
    frozen = round(QUANTIZED_BYTES * quantized) + width * (parameters - quantized)
    return count_adapter_parameters(model, settings), frozen


def _estimate_gathered(parameters: int, model: Any, width: int) -> int:
    """Bytes of complete weights and gradients that a rank holds while a sharded model runs."""
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    layer = max(0, parameters - embeddings) // model.num_hidden_layers
    # Embeddings and head during the pass, and two layers: one runs while the next is gathered. Of the largest of them,
    # the gradients in the dtype of the pass, and in float32 while they are summed over the ranks.
    return width * (embeddings + 2 * layer) + (width + 4) * max(embeddings, layer)


def _estimate_activations(config: RunConfig, model: Any, width: int) -> int:
    tokens = config.learner.token_budget
    # models without that setting (GPT-2) have 4 times the hidden size
    intermediate = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    layer = HIDDEN_PER_LAYER * model.hidden_size + INTERMEDIATE_PER_LAYER * intermediate
    layers = model.num_hidden_layers
    # checkpointing keeps each layer's input, and recomputes one layer at a time
    kept = layers * model.hidden_size + layer if config.learner.gradient_checkpointing else layers * layer
    logits = min(config.learner.logit_budget, tokens * model.vocab_size)
    return width * tokens * kept + LOGIT_COPIES * 4 * logits


def count_parameters(folder: Path) -> int:
    """Count the parameters by the headers of the weight files; no weight is read.

    Raises:
        ConfigurationError: there are no weights, or a file is missing or damaged.
    """
    index = read_json(folder / INDEX_FILE).get("weight_map")
    names = (
        sorted(set(index.values())) if isinstance(index, dict) else [path.name for path in folder.glob("*.safetensors")]
    )
    if not names:
        raise ConfigurationError(f"there are no weights in {folder}: it needs model.safetensors")
    return sum(_count_in_file(folder / name) for name in names)


def check_complete(folder: Path, parameters: int) -> None:
    """Check that the files hold as many parameters as the model that ``config.json`` describes.

    Raises:
        ConfigurationError: tensors are missing, or the configuration describes no known language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):  # allocates no memory
            model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"cannot load the model in {folder}: {error}") from error
    needed = sum(parameter.numel() for parameter in model.parameters())
    if parameters < needed:
        raise ConfigurationError(
            f"the weight files in {folder} hold {parameters:,} of the {needed:,} parameters that its config.json "
            "describes: tensors are missing"
        )


def _count_in_file(path: Path) -> int:
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing, though {INDEX_FILE} names it")
    total = 0
    try:
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                count = 1
                # A slice knows its shape from the header, so counting reads kilobytes of a file of gigabytes.
                for length in weights.get_slice(name).get_shape():
                    count *= length
                total += count
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    return total
