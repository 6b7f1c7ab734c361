"""Settings of a learner: device, precision and memory bounds."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class LearnerSettings(BaseModel):
    """The device, precision and memory bounds of one learner process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Precision of weights and gradients.")
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
        default=0, description="Ray actors that train the policy side by side; 0: the trainer's own process."
    )
    track_entropy: bool = Field(default=True, description="Measure the entropy of every trained token.")
