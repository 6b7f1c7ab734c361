"""Reads the flags that give a training run vLLM servers of its own, and the trainer's settings that follow."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from searchrl.errors import ConfigurationError
from searchrl.jobs.job_settings import JobSettings, data_path
from searchrl.jobs.rollout_engines import START_SECONDS, engine_urls, weights_folder
from searchrl.jobs.step import Engines, Size

ENGINE_FLAGS = (
    "engine_gpus", "engine_dtype", "engine_cpu", "engine_memory", "engine_kv_cache_gib", "engine_image",
)  # fmt: skip
DTYPES = ("auto", "bfloat16", "float16", "float32")
KV_CACHE_GIB = 1
PROCESS_GIB = 3
"""Of a vLLM process on CPUs with a tiny model, beside its cache (docs/operations/sizing.md): 1.7 GiB, and room for the
weights that it receives."""
ON_GPUS, ON_CPUS = Size("4", "32Gi"), Size("1", f"{KV_CACHE_GIB + PROCESS_GIB}Gi")
"""Weights pass through main memory while they load; 32 GiB are those of 10 billion parameters with half as much again.
"""
FIXED = (
    "engine.kind", "engine.urls", "engine.replicas", "engine.placement", "engine.gpus_per_replica",
    "engine.environments", "engine.weight_transfer",
)  # fmt: skip
"""Settings that follow from the flags."""


def read_engines(settings: JobSettings, given: Mapping[str, Any], model: str) -> Engines | None:
    """Return the servers that the flags describe; None without ``--engines``.

    Raises:
        ConfigurationError: flags contradict each other, or ask for something that would not be used.
    """
    count = given.get("engines")
    if count is None:
        unused = next((flag for flag in ENGINE_FLAGS if flag in given), "")
        if unused:
            raise ConfigurationError(f"{as_flag(unused)} needs --engines: the number of pods that run vLLM")
        return None
    gpus = given.get("engine_gpus", 1)
    _check(settings, count, gpus, given)
    kv_cache_gib = 0 if gpus else given.get("engine_kv_cache_gib", KV_CACHE_GIB)
    default = ON_GPUS if gpus else Size(ON_CPUS.cpu, f"{kv_cache_gib + PROCESS_GIB}Gi")
    return Engines(
        count=count,
        model=data_path("models", model),
        gpus=gpus,
        dtype=given.get("engine_dtype", "bfloat16" if gpus else "float32"),
        size=Size(given.get("engine_cpu", default.cpu), given.get("engine_memory", default.memory)),
        kv_cache_gib=kv_cache_gib,
        image=given.get("engine_image", ""),
    )


def _check(settings: JobSettings, count: int, gpus: int, given: Mapping[str, Any]) -> None:
    if count < 1:
        raise ConfigurationError(f"--engines {count}: leave it out to sample in the trainer's own process")
    if gpus < 0:
        raise ConfigurationError("--engine-gpus cannot be negative; 0 runs vLLM on CPUs")
    if gpus and "engine_kv_cache_gib" in given:
        raise ConfigurationError(
            "--engine-kv-cache-gib is for engines on CPUs (--engine-gpus 0): on GPUs vLLM takes what the weights leave"
        )
    if settings.image and "engine_image" not in given:
        raise ConfigurationError("--image names the trainer's image, which has no vLLM: add --engine-image")
    if settings.queue:
        raise ConfigurationError(
            "--queue: Kueue would admit the trainer without its engines, or the engines alone; leave --engines or "
            "--queue out"
        )


def engine_settings(engines: Engines, name: str, run_id: str) -> dict[str, str]:
    """Return the trainer's settings by which it uses the servers, as texts of ``--set``."""
    return {
        "engine.kind": "vllm",
        "engine.urls": json.dumps(engine_urls(name, engines.count)),
        "engine.weight_transfer.folder": weights_folder(run_id),
        "engine.server.dtype": engines.dtype,
        "engine.server.start_seconds": str(START_SECONDS),
    }


def check_assignments(names: Sequence[str]) -> None:
    """Refuse settings that would not fit the servers.

    Raises:
        ConfigurationError: one is set that follows from the flags.
    """
    for name in names:
        if name == "engine" or name.startswith(FIXED):
            raise ConfigurationError(f"--set {name}: jobs with --engines take it from that flag")
        if name == "engine.server.dtype":
            raise ConfigurationError("--set engine.server.dtype: jobs with --engines take it from --engine-dtype")


def as_flag(name: str) -> str:
    """Return a flag as it is written."""
    return f"--{name.replace('_', '-')}"
