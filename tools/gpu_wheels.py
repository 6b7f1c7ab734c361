"""Downloads the wheels that ``make gpu-check`` needs, for a machine with a GPU and without a network.

    python -m tools.gpu_wheels dist/gpu-wheels --python 3.12 --installed torch numpy

Versions and hashes are those of the lock files. The folder never holds more than ``--limit-mib``. A package that the
machine has already is left out with ``--installed``; with torch, so are the CUDA libraries that only torch needs.
Generated code needs at least the locked version of grpcio, so name versions, or leave that package out.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
# A package of several locks is taken from the first one: the trainer's models decide about the version of transformers.
LOCKS = ("trainer-gpu.lock", "torch.lock", "retriever-gpu.lock", "dev.lock")
PROJECT = tomllib.loads((REQUIREMENTS.parent / "pyproject.toml").read_text())["project"]
ROOTS = (
    *(Requirement(text).name for text in PROJECT["dependencies"]),
    "torch", "transformers", "peft", "bitsandbytes", "sentence-transformers", "tantivy", "pystemmer", "pytest",
)  # fmt: skip
"""What the checks import: the packages of every service, and of the extras those that learner and encoders need. Their
own requirements follow."""
LIST_FILE = "requirements.txt"
CUDA_PACKAGE = re.compile(r"(nvidia|cuda)-.*|triton")
# glibc 2.34 and older: what Debian 12, Ubuntu 22.04 and RHEL 9 have at least. pip matches a tag exactly.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)] + ["manylinux2014_x86_64", "linux_x86_64"]


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a lock file."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def write(self) -> str:
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={value}" for value in self.hashes)])


class TooLarge(Exception):
    """The folder would exceed its limit."""


def read_pins(python: str, folder: Path = REQUIREMENTS, locks: Sequence[str] = LOCKS) -> dict[str, Pin]:
    """Return the packages of the locks that apply to this version of Python on Linux, by name."""
    pins: dict[str, Pin] = {}
    for lock in locks:
        found = {pin.name: pin for pin in _read_lock((folder / lock).read_text(), python)}
        pins = {**found, **pins}
    return pins


def _read_lock(text: str, python: str) -> Iterator[Pin]:
    # pip applies markers to the Python that it runs in, not to the one that it downloads for
    environment = {
        "python_version": python, "python_full_version": f"{python}.99", "sys_platform": "linux",
        "platform_machine": "x86_64", "platform_python_implementation": "CPython", "implementation_name": "cpython",
    }  # fmt: skip
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        requirement, *hashes = line.split("--hash=")
        specification, _, marker = requirement.partition(";")
        name, _, version = specification.strip().partition("==")
        if not marker.strip() or Marker(marker.strip()).evaluate(environment):
            yield Pin(canonicalize_name(name), version.strip(), tuple(value.strip() for value in hashes))


def find_needed(
    pins: Mapping[str, Pin], roots: Iterable[str] = ROOTS, installed: Iterable[str] = (), requires=None
) -> list[Pin]:
    """Return the pins of ``roots`` and of everything that they require, without what is installed, by name.

    ``NAME==VERSION`` counts as installed only if it is not older than the pin.

    Requirements are read from the packages of this environment.
    """
    requires = requires or required_names
    present = {canonicalize_name(text.partition("==")[0]) for text in installed if _is_new_enough(text, pins)}
    needed: set[str] = set()
    waiting = [canonicalize_name(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name not in needed and name in pins:
            needed.add(name)
            waiting += requires(name)
    if "torch" not in present:
        needed |= {name for name in pins if CUDA_PACKAGE.fullmatch(name)}
    else:
        needed -= {name for name in needed if CUDA_PACKAGE.fullmatch(name)}
    return [pins[name] for name in sorted(needed - present)]


def _is_new_enough(installed: str, pins: Mapping[str, Pin]) -> bool:
    name, _, version = installed.partition("==")
    pin = pins.get(canonicalize_name(name))
    return not version or pin is None or Version(version) >= Version(pin.version)


def required_names(name: str) -> list[str]:
    """Names of the packages that an installed package requires, without those of its extras."""
    try:
        found = distribution(name).requires or []
    except PackageNotFoundError:  # a package of the GPU locks alone; the locks hold what it requires
        return []
    requirements = map(Requirement, found)
    return [
        canonicalize_name(one.name)
        for one in requirements
        if one.marker is None or one.marker.evaluate({"extra": "", "sys_platform": "linux"})
    ]


def download(pins: Sequence[Pin], folder: Path, python: str, limit: int, fetch: Callable[..., None]) -> int:
    """Download the wheels that are not there yet, one after the other; return the bytes of all wheels in the folder.

    Raises:
        TooLarge: one of them does not fit; it was removed again.
    """
    for number, pin in enumerate(pins, 1):
        if not any(is_wheel_of(path, pin) for path in folder.glob("*.whl")):
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                fetch(pin, Path(fresh), python)
                [wheel] = Path(fresh).glob("*.whl")
                size = count_bytes(folder) + wheel.stat().st_size
                if size > limit:
                    raise TooLarge(
                        f"{wheel.name} would make it {size / 2**20:,.0f} MiB; raise --limit-mib, or name packages that "
                        "the machine has with --installed"
                    )
                wheel.rename(folder / wheel.name)
        _print(f"[{number}/{len(pins)}] {pin.name} {pin.version}: {count_bytes(folder) / 2**20:,.1f} MiB in total")
    return count_bytes(folder)


def is_wheel_of(path: Path, pin: Pin) -> bool:
    name, version, *_ = path.name.split("-")
    return canonicalize_name(name) == pin.name and version == pin.version


def count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.whl"))


def fetch_wheel(pin: Pin, folder: Path, python: str) -> None:
    """Download one wheel with pip, which checks its hash."""
    listed = folder / LIST_FILE
    listed.write_text(pin.write() + "\n")
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    chosen = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    subprocess.run([*command, *chosen, "--require-hashes", "-r", str(listed), "-d", str(folder)], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheels go; those that it holds are kept")
    parser.add_argument("--python", default="3.12", choices=["3.11", "3.12", "3.13"], help="Python of that machine")
    parser.add_argument("--limit-mib", type=float, default=6000.0, help="largest size of the folder")
    parser.add_argument(
        "--installed",
        nargs="+",
        default=[],
        metavar="NAME[==VERSION]",
        help="packages that the machine has; with a version that is older than the lock's, it is downloaded",
    )
    options = parser.parse_args(arguments)
    pins = find_needed(read_pins(options.python), installed=options.installed)
    options.folder.mkdir(parents=True, exist_ok=True)
    # scripts/gpu_check.sh installs these alone: the folder may hold wheels of earlier locks, or of another Python
    (options.folder / LIST_FILE).write_text("".join(f"{pin.write()}\n" for pin in pins))
    try:
        total = download(pins, options.folder, options.python, int(options.limit_mib * 2**20), fetch_wheel)
    except (TooLarge, subprocess.CalledProcessError) as error:
        print(f"{options.folder} is incomplete: {error}", file=sys.stderr)  # noqa: T201 - a program's output
        return 1
    _print(f"{options.folder}: {len(pins)} wheels for Python {options.python}, {total / 2**20:,.0f} MiB")
    return 0


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program's output


if __name__ == "__main__":
    sys.exit(main())
