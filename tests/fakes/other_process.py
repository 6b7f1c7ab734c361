"""Opens shared memory in another process, with the code that vLLM's workers open it by."""

import json
import os
import subprocess
import sys
from typing import Any

from services.trainer.engines.vllm.weight_transfer import PLUGIN

OPEN = """
import json, sys
from shared_buffers import open_shared
memory = open_shared(json.loads(sys.argv[1]))
print(json.dumps([str(memory.device.type), memory.tolist()]))
"""


def read_elsewhere(handle: dict[str, Any]) -> tuple[str, list[int]]:
    """Return the kind of device and the bytes that another process finds behind a handle."""
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    command = [sys.executable, "-c", OPEN, json.dumps(handle)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    device, content = json.loads(said)
    return device, content
