"""The engines: the built-in reader, any OpenAI-compatible server, or a supervised vLLM process.

A new one is a file of its own and a line in ``ENGINES``.
"""

from collections.abc import Callable, Mapping

from searchrl.platform.health import Health
from services.generator.engines.base import BuiltEngine
from services.generator.engines.reader import build_reader
from services.generator.engines.served import build_url, build_vllm
from services.generator.engines.settings import ChatEngineSettings
from services.generator.metrics import GeneratorMetrics

ENGINES: Mapping[str, Callable[[ChatEngineSettings, str, GeneratorMetrics, Health], BuiltEngine]] = {
    "reader": build_reader,
    "url": build_url,
    "vllm": build_vllm,
}
"""The builder of each ``engine.kind``."""
