"""Finds the vLLM for CPUs that `make install-vllm` installs; tests that need it are skipped without it."""

from pathlib import Path

import pytest

VLLM = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "vllm"
MISSING = "NOT TESTED AGAINST vLLM: there is no .venv-vllm/bin/vllm; run `make install-vllm`"
NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.skipif(not VLLM.exists(), reason=MISSING)]
