"""Wheels for a machine with a GPU come from the lock files, and their folder never exceeds its limit."""

from pathlib import Path

import pytest

from tools import gpu_wheels
from tools.gpu_wheels import Pin, TooLarge, count_bytes, download, find_needed, read_pins

FIRST = """\
numpy==1.0 ; python_full_version < '3.12' and sys_platform == 'linux' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
numpy==2.0 ; python_full_version >= '3.12' and sys_platform == 'linux' \\
    --hash=sha256:cc
nvidia-nccl-cu13==3.0 \\
    --hash=sha256:dd
colorama==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:ee
"""
SECOND = "numpy==9.0 \\\n    --hash=sha256:ff\ntorch==4.0 \\\n    --hash=sha256:ab\n"


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    (tmp_path / "first.lock").write_text(FIRST)
    (tmp_path / "second.lock").write_text(SECOND)
    return tmp_path


def read(locks: Path, python: str) -> dict[str, Pin]:
    return read_pins(python, locks, ("first.lock", "second.lock"))


def test_the_first_lock_decides_and_markers_are_those_of_the_other_python(locks: Path) -> None:
    assert read(locks, "3.11")["numpy"].write() == "numpy==1.0 --hash=sha256:aa --hash=sha256:bb"
    assert read(locks, "3.12")["numpy"].write() == "numpy==2.0 --hash=sha256:cc"
    assert sorted(read(locks, "3.12")) == ["numpy", "nvidia-nccl-cu13", "torch"]


def test_cuda_libraries_are_left_out_with_torch(locks: Path) -> None:
    pins = read(locks, "3.12")

    def names(**given) -> list[str]:
        required = {"torch": ["numpy", "nvidia-nccl-cu13"]}
        return [pin.name for pin in find_needed(pins, ["torch"], requires=lambda name: required.get(name, []), **given)]

    assert names() == ["numpy", "nvidia-nccl-cu13", "torch"]
    assert names(installed=["Torch"]) == ["numpy"]
    assert names(installed=["torch", "numpy"]) == []
    assert names(installed=["torch", "numpy==2.0.1"]) == []
    assert names(installed=["torch", "numpy==1.9"]) == ["numpy"]  # older than the lock's


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_files_hold_what_the_checks_need(python: str) -> None:
    needed = {pin.name: pin for pin in find_needed(read_pins(python))}
    assert {"torch", "triton", "nvidia-cublas", "transformers", "scikit-learn", "pluggy"} <= set(needed)
    assert all(pin.hashes for pin in needed.values())


def test_the_folder_stays_within_its_limit_and_is_completed_later(tmp_path: Path) -> None:
    fetched: list[str] = []

    def fetch(pin: Pin, folder: Path, python: str) -> None:
        fetched.append(pin.name)
        (folder / f"{pin.name}-{pin.version}-py3-none-any.whl").write_bytes(bytes(60))

    pins = [Pin("one", "1", ("sha256:a",)), Pin("two", "2", ("sha256:b",))]
    with pytest.raises(TooLarge, match=r"two-2-py3-none-any\.whl would make it"):
        download(pins, tmp_path, "3.12", 100, fetch)
    assert count_bytes(tmp_path) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["one-1-py3-none-any.whl"]
    assert download(pins, tmp_path, "3.12", 120, fetch) == 120
    assert fetched == ["one", "two", "two"]


def test_the_folder_lists_what_is_to_be_installed_with_its_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(pin: Pin, folder: Path, python: str) -> None:
        (folder / f"{pin.name.replace('-', '_')}-{pin.version}-cp312-abi3-linux_x86_64.whl").write_bytes(bytes(2**20))

    monkeypatch.setattr(gpu_wheels, "fetch_wheel", fetch)
    command = [str(tmp_path / "wheels"), "--installed", "torch", "numpy", "--limit-mib"]
    assert gpu_wheels.main([*command, "3"]) == 1
    assert "would make it 4 MiB; raise --limit-mib" in capsys.readouterr().err
    assert gpu_wheels.main([*command, "100"]) == 0
    listed = [line.split() for line in (tmp_path / "wheels" / "requirements.txt").read_text().splitlines()]
    assert all(hashes and hashes[0].startswith("--hash=sha256:") for _, *hashes in listed)
    names = {name.split("==")[0] for name, *_ in listed}
    assert "transformers" in names and not names & {"torch", "numpy", "nvidia-cublas"}
    assert len(list((tmp_path / "wheels").glob("*.whl"))) == len(listed)
