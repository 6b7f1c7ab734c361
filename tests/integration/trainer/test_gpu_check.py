"""The check of a GPU runs on the CPU, with the packages that are downloaded for it, and reports how each part ended."""

import importlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.gpu.check import checks
from tests.gpu.check.checks import CHECKS, Check, CheckSettings
from tests.gpu.check.isolation import Finding, Table, run_isolated
from tests.gpu.check.measurements import is_within_estimate
from tools.gpu_wheels import CUDA_PACKAGE, find_needed, read_pins

# a module of this name cannot be named in an import statement
program = importlib.import_module("tests.gpu.check.__main__")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with links to what the wheels of the check hold, and to nothing else of this environment."""
    folder = tmp_path / "packages"
    folder.mkdir()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = [pin.name for pin in find_needed(read_pins(version)) if not CUDA_PACKAGE.fullmatch(pin.name)]
    assert len(names) > 30
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    return folder


@pytest.mark.slow
def test_a_dry_run_passes_every_check_with_the_downloaded_packages_alone(packages: Path, tmp_path: Path) -> None:
    command = ["-S", "-m", "tests.gpu.check", "--device", "cpu", "--first-case", "--output", str(tmp_path / "out")]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "out" / "report.md").read_text() == ended.stdout.removesuffix("\n")
    for check in CHECKS:
        assert f"| {check.name} | passed |" in ended.stdout
    assert "nothing of a GPU was tested" in ended.stdout.splitlines()[0]
    assert ended.stdout.count("| tiny | on |") == 2


def kill_itself(settings: CheckSettings) -> Finding:
    os.kill(os.getpid(), signal.SIGKILL)
    return Finding(True, "survived")


def never_end(settings: CheckSettings) -> Finding:
    time.sleep(3600)
    return Finding(True, "ended")


def test_a_check_that_fails_crashes_or_hangs_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    table = Table("Lengths", ("name", "meters"), [{"name": "one", "meters": 1.5}])
    four = (
        Check("raises", "", 60, lambda settings: Finding(1 // 0 == 0, "")),
        Check("crashes", "", 60, kill_itself),
        Check("hangs", "", 0.02, never_end),
        Check("works", "a | b", 60, lambda settings: Finding(True, settings.device, [table])),
    )
    monkeypatch.setattr(checks, "CHECKS", four)
    monkeypatch.setattr(program, "PRELOADED", ())
    assert program.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    assert [(cell[0], cell[1], cell[3]) for cell in cells[2:6]] == [
        ("| raises", "FAILED", "ZeroDivisionError: integer division or modulo by zero"),
        ("| crashes", "FAILED", "the process was ended by SIGKILL"),
        ("| hangs", "FAILED", "not finished after 0 s"),
        ("| works", "passed", "cpu"),
    ]
    assert "| one | 1.5 |" in rows
    assert "ZeroDivisionError" in (tmp_path / "raises.log").read_text()
    assert program.main(["--device", "cpu", "--output", str(tmp_path), "--only", "works"]) == 0


def test_the_report_of_finished_checks_is_there_while_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_report(settings: CheckSettings) -> Finding:
        return Finding(True, f"{(tmp_path / 'report.md').read_text().count('| passed |')} so far")

    checked = (Check("first", "", 60, lambda settings: Finding(True, "")), Check("second", "", 60, read_report))
    monkeypatch.setattr(checks, "CHECKS", checked)
    monkeypatch.setattr(program, "PRELOADED", ())
    assert program.main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    assert "| 1 so far |" in (tmp_path / "report.md").read_text()


def test_a_process_that_starts_anew_returns_its_finding_too(tmp_path: Path) -> None:
    """Beside a GPU nothing is forked."""
    for passed in (True, False):
        expected = Finding(passed, "found")
        assert run_isolated(partial(Finding, passed, "found"), "spawn", 60, tmp_path / "log") == expected


def test_without_a_gpu_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert program.main(["--output", str(tmp_path)]) == 2
    assert "sees no CUDA GPU; --device cpu makes a dry run" in capfd.readouterr().err


def test_all_checks_end_within_eight_minutes() -> None:
    assert sum(check.seconds for check in CHECKS) < program.TOTAL_SECONDS == 8 * 60


@pytest.mark.parametrize(("share", "passes"), [(0.5, False), (0.9, True), (1.05, True), (1.2, False), ("none", False)])
def test_memory_far_from_the_estimate_fails_its_check(share: object, passes: bool) -> None:
    assert is_within_estimate(share) is passes
