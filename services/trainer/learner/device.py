"""Device, precision and memory of a learner: its settings, the device's lookup, and explained out-of-memory errors."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from services.trainer.cluster.placement import Place
from services.trainer.learner.train_batch import TrainRow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NoAdapter(Section):
    """Every weight is trained."""

    kind: Literal["none"] = "none"


class LoraSettings(Section):
    """A low-rank adapter is trained, and the model itself stays as it is."""

    kind: Literal["lora"] = "lora"
    # Thinking Machines ("LoRA without regret", 2025): reinforcement learning needs little capacity, and low ranks match
    # full training. vLLM serves ranks of 8, 16, 32 and further powers of 2.
    rank: PositiveInt = Field(default=16, description="Rows of A, columns of B.")
    alpha: PositiveFloat = Field(default=32.0, description="The adapter's part is multiplied by alpha / rank.")
    targets: tuple[str, ...] = Field(default=(), description="Names of the adapted layers; empty: all linear ones.")


class QloraSettings(LoraSettings):
    """The same beside a model that is held in 4 bits (2305.14314)."""

    kind: Literal["qlora"] = "qlora"  # pyright: ignore[reportIncompatibleVariableOverride]


AdapterSettings = NoAdapter | LoraSettings | QloraSettings


def describe_adapter(settings: AdapterSettings) -> str:
    """What a checkpoint must be resumed with."""
    if isinstance(settings, NoAdapter):
        return settings.kind
    return f"{settings.kind}, rank {settings.rank}, alpha {settings.alpha:g}, {', '.join(settings.targets) or 'all'}"


class LearnerSettings(Section):
    """The device, precision and memory bounds of one learner process."""

    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the passes; weights, gradients and moments are float32."
    )
    # More tokens fill a GPU better and need more memory for activations; a small model on a CPU is faster with fewer.
    token_budget: PositiveInt = Field(default=4096, description="Tokens of one forward pass, padding included.")
    packed: bool = Field(default=False, description="Lay the rows of a micro-batch end to end instead of padding them.")
    # 2**26 logits are 256 MiB in float32, of which the backward pass holds a few copies.
    logit_budget: PositiveInt = Field(default=1 << 26, description="Largest number of logits held at once.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    attention: str = Field(default="sdpa", description="Attention implementation of transformers.")
    # The matrix products of a small model are too small to be shared: a second thread costs more than it brings.
    threads: PositiveInt | None = Field(
        default=1, description="Threads of torch on the CPU; None leaves them as they are."
    )
    ranks: NonNegativeInt = Field(
        default=0, description="Ray actors over which all models are sharded; 0: the trainer's own process."
    )
    offload: Literal["none", "cpu"] = Field(
        default="none", description="cpu: weights, gradients and moments stay in main memory between passes of a GPU."
    )
    # Of use for large models on a GPU: compiling takes minutes, and a small model on a CPU gains nothing.
    compile: bool = Field(default=False, description="Compile each layer with torch.compile.")
    adapter: AdapterSettings = Field(
        default=NoAdapter(), discriminator="kind", description="What is trained: all weights, or an adapter."
    )
    track_entropy: bool = Field(default=True, description="Measure the entropy of every trained token.")

    def places(self) -> list[Place]:
        """What the ranks need of a Ray cluster."""
        return [Place("learner rank", self.threads or 1, int(self.device.startswith("cuda")))] * self.ranks

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        if self.offload == "cpu" and not self.device.startswith("cuda"):
            raise ValueError(f"learner.offload moves weights out of a GPU, and learner.device is {self.device}")
        if self.adapter.kind == "qlora" and (self.ranks > 1 or self.offload != "none"):
            raise ValueError(
                "learner.adapter.kind qlora holds the model in 4 bits, which cannot be sharded or offloaded: use lora, "
                "or leave out learner.ranks and learner.offload"
            )
        return self


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
            f"device {name} was requested, but this machine has {count} CUDA devices; use device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name} is not supported; use cpu, cuda or cuda:N")
    return device


@contextmanager
def explain_memory_errors(what: str, advice: str) -> Iterator[None]:
    """Turn an error of the GPU's allocator into a message with advice.

    Raises:
        ConfigurationError: the block ran out of the GPU's memory.
    """
    # Only a GPU's allocator raises this. Linux overcommits the memory of the CPU and kills the process later.
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(f"{what} does not fit into the GPU's memory; {advice}") from error


def explain_pass(rows: Sequence[TrainRow], settings: LearnerSettings) -> AbstractContextManager[None]:
    """Explain memory errors of one pass of a micro-batch through a model.

    Raises:
        ConfigurationError: the pass ran out of the GPU's memory.
    """
    longest = max((len(row) for row in rows), default=0)
    what = f"a micro-batch of {len(rows)} rows of up to {longest} tokens"
    advice = (
        f"lower learner.token_budget (now {settings.token_budget}) or learner.logit_budget (now "
        f"{settings.logit_budget}), or recompute activations with learner.gradient_checkpointing"
    )
    return explain_memory_errors(what, advice)
