"""Defines the settings of a vLLM process."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from searchrl.platform.settings import Section


class VllmProcessSettings(Section):
    """How a vLLM process runs, whatever its model."""

    executable: Path = Field(default=Path(".venv-vllm/bin/vllm"), description="The command, in its own environment.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(default="auto", description="Type of the weights.")
    max_model_len: PositiveInt | None = Field(default=None, description="Longest prompt and reply together, in tokens.")
    # As many as questions are answered at once by default (limits.max_answers); further requests wait inside vLLM.
    max_num_seqs: PositiveInt = Field(default=64, description="Requests computed together.")
    tensor_parallel_size: PositiveInt = Field(default=1, description="GPUs that share one model.")
    # The rest is for the CUDA context, and for peaks that vLLM's profiling run does not see.
    gpu_memory_utilization: PositiveFloat = Field(default=0.9, le=1, description="Share of GPU memory; unused on CPUs.")
    cpu_kv_cache_gib: NonNegativeInt = Field(default=0, description="KV cache on CPUs in GiB; 0 on GPUs.")
    enforce_eager: bool = Field(default=False, description="Skip compilation: starts faster, runs slower.")
    extra_flags: list[str] = Field(default=[], description="Further flags of `vllm serve`.")
    # Loading a large model, compiling and capturing graphs take minutes; a start that hangs must still end.
    start_seconds: PositiveFloat = Field(default=600.0, description="Time to load the model and generate once.")
    shutdown_seconds: NonNegativeInt = Field(
        default=5, description="Time to exit after SIGTERM; requests are drained before."
    )


class VllmSettings(VllmProcessSettings):
    """A vLLM process and its model."""

    model: str = Field(default="", description="Model folder, or name on a hub.")
    served_name: str = Field(default="", description="Name of the model in the API; if empty, its folder's name.")
    chat_template: Path | None = Field(default=None, description="Jinja file for a model without a chat template.")
    log_file: Path = Field(default=Path("runs/vllm.log"), description="Where the process writes its log.")
