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
from services.trainer.engines.torch_engine import TorchEngineSettings
from services.trainer.learner.adapters import count_adapter_parameters, count_linear_parameters
from services.trainer.learner.device import DTYPES, LoraSettings
from services.trainer.learner.ranks import Ranks
from services.trainer.learner.sharding import is_sharded
from services.trainer.settings import RunConfig

INDEX_FILE = "model.safetensors.index.json"
# Number of tensors, of the size of the hidden and the intermediate state, that a token leaves in one layer; measured.
HIDDEN_PER_LAYER, INTERMEDIATE_PER_LAYER = 19, 3
# 4 bits, and per block of 64 weights one scale of 8 bits, 256 of which share one of 32 (2305.14314): 4.127 bits
QUANTIZED_BYTES = 4.127 / 8
# On a GPU torch steps all parameters in one call and holds temporaries for each of them. Qwen2.5-0.5B's shape peaked at
# 24 bytes per parameter on an H200; weights, gradients and moments are 16.
STEP_BYTES = 8
LOGIT_COPIES = 3  # logits, their log-probabilities, and the gradient; always float32


# Example: 1.5 billion parameters are 1.5e9 x 16 bytes = 22 GiB for weights, gradients and moments; a critic doubles
# that, and a reference adds 1.5e9 x 4 bytes = 5.6 GiB, or half of that with bfloat16. Four ranks hold a quarter each.
@dataclass(frozen=True, slots=True)
class RunSizes:
    """Estimated sizes in bytes; those of the learner are of each rank.

    Attributes:
        weights: of policy and critic, the masters that the optimizer changes and what is frozen beside an adapter.
        gradients: of what is trained, in float32.
        moments: AdamW's two of what is trained, in float32.
        reference: weights of the reference policy, if it is a model of its own.
        gathered: complete layers and their gradients while a sharded model runs.
        activations: what one forward pass of ``learner.token_budget`` tokens keeps for the backward pass.
        recomputed: of one layer, with ``learner.gradient_checkpointing``, after the logits are freed.
        logits: the output of such a pass.
        stepping: temporaries of the optimizer's step, after the passes.
        offloaded: the part that is in main memory between the passes of a GPU.
        engine: the rollout engine's weights.
        push: the two copies of the weights, or of the adapter, while new ones are published.
        slot: most memory for the keys and values of one rollout, reached when the pool grows to the full context.
        disk: the checkpoints that are kept, one more while it is written, that of the best validation, and the final
            model.
    """

    weights: int
    gradients: int
    moments: int
    reference: int
    gathered: int
    activations: int
    recomputed: int
    logits: int
    stepping: int
    offloaded: int
    engine: int
    push: int
    slot: int
    disk: int

    @property
    def learner(self) -> int:
        """The most that a rank holds on its device."""
        state = self.weights + self.gradients + self.moments + self.reference
        passes = self.gathered + self.activations + max(self.recomputed, self.logits)
        return state - self.offloaded + max(passes, self.stepping)


def estimate_sizes(config: RunConfig, parameters: int, context_tokens: int) -> RunSizes:
    """Estimate what a run needs.

    Raises:
        ConfigurationError: ``config.json`` describes no model that the engine can sample.
    """
    from services.trainer.engines.kv_pool import most_slot_bytes

    model = read_model_config(config.model)
    width = DTYPES[config.learner.dtype].itemsize
    ranks = Ranks(size=max(1, config.learner.ranks))
    models = 2 if config.algorithm.needs_critic else 1  # the critic is a model of its own
    trained, frozen = _count_trained(model, config, parameters, width)
    # beside an adapter the reference is the policy without it
    reference = width * parameters if config.algorithm.needs_reference and not frozen else 0
    weights, gradients, moments, reference = (
        size // ranks.size
        for size in (models * (4 * trained + frozen), models * 4 * trained, models * 8 * trained, reference)
    )
    text = model.get_text_config()
    has_best = config.validation.questions is not None
    activations, recomputed = _estimate_activations(config, text, width)
    return RunSizes(
        weights=weights,
        gradients=gradients,
        moments=moments,
        reference=reference,
        gathered=_estimate_gathered(parameters, text, width) if is_sharded(config.learner, ranks) else 0,
        activations=activations,
        recomputed=recomputed,
        logits=LOGIT_COPIES * 4 * min(config.learner.logit_budget, config.learner.token_budget * text.vocab_size),
        stepping=models * STEP_BYTES * trained // ranks.size if _steps_on_gpu(config) else 0,
        offloaded=weights + gradients + moments + reference if config.learner.offload == "cpu" else 0,
        # float32; servers of vLLM hold their weights themselves
        engine=parameters * 4 if isinstance(config.engine, TorchEngineSettings) else 0,
        push=(trained if config.engine.takes_adapter else parameters) * 4 * 2,
        slot=most_slot_bytes(model, context_tokens),
        # weights and two moments of 4 bytes each, also for the best validation; the final model is float32
        disk=trained * 12 * models * (config.checkpoints.keep + 1 + has_best) + parameters * 4,
    )


def _steps_on_gpu(config: RunConfig) -> bool:
    return config.learner.device.startswith("cuda") and config.learner.offload == "none"


def read_model_config(folder: Path) -> Any:
    """Read ``config.json`` as transformers describes the model.

    Raises:
        ConfigurationError: it describes no model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"cannot read {folder / 'config.json'}: {error}") from error


def _count_trained(described: Any, config: RunConfig, parameters: int, width: int) -> tuple[int, int]:
    """Number of trained parameters, and bytes of the model beside them, which is frozen if there is an adapter."""
    settings = config.learner.adapter
    if not isinstance(settings, LoraSettings):
        return parameters, 0
    model = _build_without_memory(described)
    quantized = count_linear_parameters(model) if settings.kind == "qlora" else 0
    # What is not quantized is held in the dtype of the passes.
    frozen = round(QUANTIZED_BYTES * quantized) + width * (parameters - quantized)
    return count_adapter_parameters(model, settings), frozen


def _build_without_memory(described: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(described, trust_remote_code=False)


def _estimate_gathered(parameters: int, model: Any, width: int) -> int:
    """Bytes of complete weights and gradients that a rank holds while a sharded model runs."""
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    layer = max(0, parameters - embeddings) // model.num_hidden_layers
    # Embeddings and head during the pass, and two layers: one runs while the next is gathered. Of the largest of them,
    # the gradients in the dtype of the pass, and in float32 while they are summed over the ranks.
    return width * (embeddings + 2 * layer) + (width + 4) * max(embeddings, layer)


def _estimate_activations(config: RunConfig, model: Any, width: int) -> tuple[int, int]:
    """Bytes that a forward pass keeps, and those of the one layer that is recomputed at a time."""
    token = width * config.learner.token_budget
    # models without that setting (GPT-2) have 4 times the hidden size
    intermediate = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    layer = HIDDEN_PER_LAYER * model.hidden_size + INTERMEDIATE_PER_LAYER * intermediate
    layers = model.num_hidden_layers
    if config.learner.gradient_checkpointing:
        return token * layers * model.hidden_size, token * layer  # the input of each layer, and one complete layer
    return token * layers * layer, 0


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


def count_described_parameters(folder: Path) -> int:
    """Count the parameters of the model that ``config.json`` describes.

    Raises:
        ConfigurationError: it describes no known language model.
    """
    try:
        model = _build_without_memory(read_model_config(folder))
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"cannot load the model in {folder}: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters())


def check_complete(folder: Path, parameters: int) -> None:
    """Check that the files hold as many parameters as the model that ``config.json`` describes.

    Raises:
        ConfigurationError: tensors are missing, or the configuration describes no known language model.
    """
    needed = count_described_parameters(folder)
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
