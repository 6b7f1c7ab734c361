"""Defines the settings of vLLM as rollout engine."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from searchrl.model_server.settings import VllmProcessSettings
from searchrl.platform.settings import Section
from services.trainer.cluster.placement import Place
from services.trainer.engines.base import EngineBase

PROBE_TOLERANCES = {"float32": 1e-3}
"""Mean nats per token. In float32, vLLM and the learner differ by 1e-6 to 1e-5, and other weights by much more."""
PROBE_TOLERANCE = 0.1
"""In half precision a random model of four layers differed by 0.02 on average, other weights by several nats."""


class WeightTransferSettings(Section):
    """How new weights reach the servers."""

    backend: Literal["shared_fs", "gloo", "nccl", "ipc", "lora_adapter"] = Field(
        default="shared_fs",
        description="shared_fs: as a file that the servers read and check by its hash; "
        "gloo: between CPUs over the network; nccl: between GPUs; "
        "ipc: through memory that trainer and servers of one machine share; "
        "lora_adapter: the learner's adapter alone, as files that the servers load beside the model.",
    )
    host: str = Field(default="127.0.0.1", description="gloo, nccl: the trainer's address as the servers reach it.")
    device: str = Field(
        default="cuda:0", description="nccl: the GPU that sends; ipc: the GPU whose memory is shared, or cpu."
    )
    folder: Path | None = Field(
        default=None,
        description="Folder of the files, which servers see under the same path; None: the run's.",
    )


class VllmEngineSettings(EngineBase):
    """Sampling on vLLM servers."""

    needs_probe: ClassVar[bool] = True

    kind: Literal["vllm"] = Field(
        default="vllm", description="torch: in this process, on CPUs, in float32; vllm: servers of vLLM."
    )
    # Half precision differs from the learner by 0.02 on average, and more for some models.
    logprob_tolerance: NonNegativeFloat | None = Field(
        default=0.1, description="Mean difference in nats to the learner that stops a synchronous run; None: no check."
    )
    urls: list[str] = Field(default=[], description="Running servers; empty: the trainer starts some.")
    key_file: Path | None = Field(default=None, description="File with the API key of the servers in urls.")
    replicas: PositiveInt = Field(default=1, description="Servers that the trainer starts if urls is empty.")
    placement: Literal["process", "ray"] = Field(
        default="process",
        description="Where it starts them: process: on its machine; ray: in actors of the Ray cluster, whose places "
        "are reserved with those of learner.ranks.",
    )
    gpus_per_replica: NonNegativeInt = Field(
        default=1, description="With placement ray, GPUs of each server, which share its model; 0 on CPUs."
    )
    environments: list[dict[str, str]] = Field(
        default=[], description="Variables of each started server, such as CUDA_VISIBLE_DEVICES; empty: the trainer's."
    )
    server: VllmProcessSettings = Field(
        default=VllmProcessSettings(), description="The servers that the trainer starts."
    )
    min_replicas: PositiveInt = Field(
        default=1, description="Servers with the current weights below which rollouts wait."
    )
    running_turns: Literal["wait", "continue"] = Field(
        default="wait",
        description="At new weights, wait: turns end first; continue: they stop, and go on under the new weights.",
    )
    # vLLM queues what it cannot compute at once; a bounded queue keeps requests of a lost server few.
    max_in_flight: PositiveInt = Field(default=256, description="Requests that one server has at once.")
    timeout_seconds: PositiveFloat = Field(default=600.0, description="Longest generation of one turn.")
    update_seconds: PositiveFloat = Field(default=600.0, description="Longest transfer of weights to one server.")
    # Longer than a server takes to load a large model, once more if the first start fails.
    recovery_seconds: PositiveFloat = Field(
        default=1200.0, description="Longest wait for min_replicas servers; then the run ends."
    )
    probe_tolerance: PositiveFloat | None = Field(
        default=None,
        description="Mean difference in nats of fixed tokens that refuses a server's weights; "
        "None: 0.001 in float32, else 0.1.",
    )
    weight_transfer: WeightTransferSettings = Field(
        default=WeightTransferSettings(), description="How weights reach the servers."
    )

    @property
    def largest_difference(self) -> float:
        """The tolerance of the probe in nats."""
        return self.probe_tolerance or PROBE_TOLERANCES.get(self.server.dtype, PROBE_TOLERANCE)

    @property
    def takes_adapter(self) -> bool:
        """See ``EngineBase``."""
        return self.weight_transfer.backend == "lora_adapter"

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs that share the model of a server that the trainer starts."""
        return max(1, self.gpus_per_replica) if self.placement == "ray" else self.server.tensor_parallel_size

    def places(self) -> list[Place]:
        """See ``EngineBase``."""
        # vLLM computes on GPUs, or in the threads that its own settings choose: the CPU is for its event loops.
        return [Place("vLLM server", 1, self.gpus_per_replica)] * self.replicas if self.placement == "ray" else []

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        if self.placement == "process":
            if self.gpus_per_replica != 1:
                raise ValueError("gpus_per_replica is for placement ray: set server.tensor_parallel_size instead")
        elif self.weight_transfer.backend == "ipc":
            raise ValueError(
                "weight_transfer.backend ipc needs servers on the trainer's machine, which placement ray does not "
                "promise: choose nccl, gloo or shared_fs"
            )
        elif self.urls:
            raise ValueError("placement ray starts servers, and urls names running ones: leave one of them out")
        elif self.server.tensor_parallel_size != 1:
            raise ValueError(
                "with placement ray, server.tensor_parallel_size follows from gpus_per_replica: leave it out"
            )
        elif bool(self.gpus_per_replica) == bool(self.server.cpu_kv_cache_gib):
            raise ValueError(
                f"gpus_per_replica {self.gpus_per_replica} and server.cpu_kv_cache_gib {self.server.cpu_kv_cache_gib}: "
                "with placement ray, servers either have GPUs or a cache on CPUs, so exactly one must be 0"
            )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        count = len(self.urls) or self.replicas
        if self.min_replicas > count:
            raise ValueError(f"min_replicas {self.min_replicas} is more than the {count} servers")
        if self.environments and len(self.environments) != self.replicas:
            raise ValueError(f"environments names {len(self.environments)} servers, replicas {self.replicas}")
        if self.takes_adapter and self.running_turns == "continue":
            raise ValueError(
                "running_turns continue interrupts turns for complete weights, and with weight_transfer.backend "
                "lora_adapter a turn ends under the adapter that it started with: leave it out"
            )
        return self
