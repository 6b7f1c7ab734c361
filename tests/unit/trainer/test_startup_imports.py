"""A command of the trainer loads a library of seconds only when it needs it, so that mistakes are reported at once."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "ray", "fastapi", "pyarrow")


@pytest.mark.parametrize(
    ("module", "loaded"),
    [
        ("services.trainer.__main__", []),
        ("services.trainer.publish_model", []),
        ("services.trainer.sft.__main__", []),
        ("services.trainer.runs.stop_run", []),
        ("services.trainer.runs.serve_engine", []),
        ("services.trainer.small_world.warm_start", []),
        ("services.trainer.wiring", ["torch", "fastapi", "pyarrow"]),
    ],
)
def test_a_command_loads_no_library_before_it_is_used(module: str, loaded: list[str]) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)
