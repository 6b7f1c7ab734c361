"""Estimates the memory and disk of a run from its model's headers and its settings; see docs/operations/sizing.md.

P parameters are 4 P bytes of weights, 4 P of gradients and 8 P of AdamW's moments (4 P of Muon's momentum, for the
matrices between embeddings and head), distributed over the ranks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_files import read_json
from services.trainer.engines.torch_engine import TorchEngineSettings
from services.trainer.learner.adapters import count_adapter_parameters, count_linear_parameters
from services.trainer.learner.device import DTYPES, LoraSettings
from services.trainer.learner.optimizers import is_hidden_matrix
from services.trainer.learner.ranks import Ranks
from services.trainer.learner.sharding import is_sharded
from services.trainer.preflight.activations import estimate_passes
from services.trainer.settings import RunConfig

INDEX_FILE = "model.safetensors.index.json"
# 4 bits, and per block of 64 weights one scale of 8 bits, 256 of which share one of 32 (2305.14314): 4.127 bits
QUANTIZED_BYTES = 4.127 / 8
# On a GPU torch steps all parameters in one call and holds temporaries for each of them. Qwen2.5-0.5B's shape peaked at
# 24 bytes per parameter on an H200; weights, gradients and moments are 16.
STEP_BYTES = 8
MOMENT_BYTES = {"adamw": 8, "muon": 4}
"""Float32 numbers of a parameter that an optimizer keeps: two averages, or one."""


# Example: 1.5 billion parameters are 1.5e9 x 16 bytes = 22 GiB for weights, gradients and moments; a critic doubles
# that, and a reference adds 1.5e9 x 4 bytes = 5.6 GiB, or half of that with bfloat16. Four ranks hold a quarter each.
@dataclass(frozen=True, slots=True)
class RunSizes:
    """Estimated sizes in bytes; those of the learner are of each rank.

    Attributes:
        weights: of policy and critic, the masters that the optimizer changes and what is frozen beside an adapter.
        gradients: of what is trained, in float32.
        moments: of what is trained, in float32: AdamW's two; Muon's one for matrices.
        reference: weights of the reference policy, if it is a model of its own.
        gathered: complete layers while a sharded model runs.
        activations: what one forward pass of ``learner.token_budget`` tokens keeps for the backward pass.
        backward: what the backward pass of a layer takes more, including the layer if it is recomputed
            (``learner.gradient_checkpointing``).
        logits: what the output layer and the loss take more, freed before the layers' backward pass.
        stepping: temporaries after the activations are freed: of the embeddings' gradient and the optimizer's step.
        offloaded: the part that is in main memory between the passes of a GPU.
        engine: the rollout engine's weights.
        push: the two copies of the weights, or of the adapter, while new ones are published.
        captured: a rank's copy in main memory of what a checkpoint holds, with ``checkpoints.background``.
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
    backward: int
    logits: int
    stepping: int
    offloaded: int
    engine: int
    push: int
    captured: int
    slot: int
    disk: int

    @property
    def learner(self) -> int:
        """The most that a rank holds on its device."""
        state = self.weights + self.gradients + self.moments + self.reference
        passes = self.gathered + self.activations + max(self.backward, self.logits)
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
    trained = _count_trained(model, config, parameters, width)
    # beside an adapter the reference is the policy without it
    reference = width * parameters if config.algorithm.needs_reference and not trained.frozen_bytes else 0
    kinds = [config.update.optim.kind, *(optim.kind for optim in config.algorithm.optimizers.values())]
    all_moments = sum(trained.moment_bytes(kind) for kind in kinds)
    weights, gradients, moments, reference = (
        size // ranks.size
        for size in (
            models * (4 * trained.parameters + trained.frozen_bytes),
            models * 4 * trained.parameters,
            all_moments,
            reference,
        )
    )
    text = model.get_text_config()
    has_best = config.validation.questions is not None
    sharded = is_sharded(config.learner, ranks)
    layer_parameters = _count_layer(parameters, text)
    passes = estimate_passes(
        config.learner,
        text,
        layer_parameters=layer_parameters,
        is_sharded=sharded,
        entropy_gradient=config.algorithm.loss.entropy_coefficient != 0,
    )
    gathered = _estimate_gathered(layer_parameters, text, width) if sharded else 0
    stepping = models * STEP_BYTES * trained.parameters // ranks.size if _steps_on_gpu(config) else 0
    saved = 4 * trained.parameters * models + all_moments  # weights and moments, in a checkpoint
    return RunSizes(
        weights=weights,
        gradients=gradients,
        moments=moments,
        reference=reference,
        gathered=gathered,
        activations=passes.activations,
        backward=passes.backward,
        logits=passes.logits,
        stepping=max(stepping, gathered + passes.summing),
        offloaded=weights + gradients + moments + reference if config.learner.offload == "cpu" else 0,
        # float32; servers of vLLM hold their weights themselves
        engine=parameters * 4 if isinstance(config.engine, TorchEngineSettings) else 0,
        push=(trained.parameters if config.engine.takes_adapter else parameters) * 4 * 2,
        captured=saved // ranks.size if config.checkpoints.background else 0,  # at most one checkpoint is in writing
        slot=most_slot_bytes(model, context_tokens),
        # also for the best validation; the final model is float32
        disk=saved * (config.checkpoints.keep + 1 + has_best) + parameters * 4,
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


class _Trained(NamedTuple):
    """What a run trains of a model.

    Attributes:
        parameters: number of trained ones.
        matrices: how many of them are in matrices that Muon updates, if it is the optimizer.
        frozen_bytes: of the model beside an adapter; 0 without one.
    """

    parameters: int
    matrices: int
    frozen_bytes: int

    def moment_bytes(self, kind: str) -> int:
        """Of the optimizer of this kind; what Muon does not update is AdamW's."""
        others = self.parameters - self.matrices
        return MOMENT_BYTES[kind] * self.matrices + MOMENT_BYTES["adamw"] * others


def _count_trained(described: Any, config: RunConfig, parameters: int, width: int) -> _Trained:
    settings, model = config.learner.adapter, _build_without_memory(described)
    if not isinstance(settings, LoraSettings):
        matrices = sum(p.numel() for name, p in model.named_parameters() if is_hidden_matrix(name, p))
        return _Trained(parameters, matrices, 0)
    quantized = count_linear_parameters(model) if settings.kind == "qlora" else 0
    # What is not quantized is held in the dtype of the passes.
    frozen = round(QUANTIZED_BYTES * quantized) + width * (parameters - quantized)
    trained = count_adapter_parameters(model, settings)
    return _Trained(trained, trained, frozen)  # an adapter has matrices only


def _build_without_memory(described: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(described, trust_remote_code=False)


def _count_embeddings(model: Any) -> int:
    return model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)


def _count_layer(parameters: int, model: Any) -> int:
    return max(0, parameters - _count_embeddings(model)) // model.num_hidden_layers


def _estimate_gathered(layer_parameters: int, model: Any, width: int) -> int:
    """Bytes of complete weights that a rank holds while a sharded model runs."""
    # Embeddings and head during the pass, and two layers: one runs while the next is gathered.
    return width * (_count_embeddings(model) + 2 * layer_parameters)


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
