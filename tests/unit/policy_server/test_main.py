"""The policy server's command line: help and unusable settings are answered before torch is loaded."""

import subprocess
import sys

import pytest

RUN_MAIN = """
import sys
from services.policy_server.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--help"], 0, "usage: python -m services.policy_server"),
        (["--set", "nonsense=1"], 2, "nonsense"),
        ([], 2, "model"),
    ],
)
def test_help_and_unusable_settings_do_not_load_torch(arguments: list[str], code: int, sentence: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", RUN_MAIN, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert sentence in ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "False"
