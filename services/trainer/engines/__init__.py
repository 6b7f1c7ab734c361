"""The engines that sample a run's tokens, by name; one file or folder each, with its settings."""

from collections.abc import Callable, Mapping
from typing import Any

from services.trainer.engines.base import EngineBase, EngineContext, RolloutEngine
from services.trainer.engines.torch_engine import TorchEngineSettings, build_torch_engine
from services.trainer.engines.vllm.build import build_vllm_engine
from services.trainer.engines.vllm.settings import VllmEngineSettings

EngineSettings = TorchEngineSettings | VllmEngineSettings
ENGINES: Mapping[str, tuple[Callable[[Any, EngineContext], RolloutEngine], type[EngineBase]]] = {
    "torch": (build_torch_engine, TorchEngineSettings),
    "vllm": (build_vllm_engine, VllmEngineSettings),
}
"""Builder and settings by ``engine.kind``."""
