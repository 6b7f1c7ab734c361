"""The Dockerfiles keep the rules: locked, small, unprivileged and labeled images that fetch nothing at start."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.cluster.static.dockerfile_reading import (
    FILE,
    ROOT,
    SERVICES,
    Dockerfile,
    entry_point,
    read_dockerfile,
    service_file,
)

ALL = [FILE, *sorted((ROOT / "tests/cluster/images").glob("*.Dockerfile"))]
IMAGES = [*(service_file(service) for service in SERVICES), *(read_dockerfile(path) for path in ALL[1:])]
LABELS = {"title", "description", "licenses", "version", "revision", "created", "base.name", "base.digest"}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def requirements_of(lock: Path) -> dict[str, list[str]]:
    """Requirement -> its hashes."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            found[line.split()[0] + line.partition(" ;")[2].partition("--hash")[0]] = HASH.findall(line)
    return found


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    beside = ROOT / ".venv" / "bin" / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("THE IMAGES' RECIPES ARE NOT LINTED: there is no hadolint; run `make install`")
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_base_is_named_in_full_without_latest(path: Path) -> None:
    recipe = read_dockerfile(path)
    names = {stage.name for stage in recipe.stages}
    for stage in recipe.stages:
        argument = re.fullmatch(r"\$\{(\w+)\}", stage.base)
        assert argument or stage.base in names, f"FROM {stage.base}: take an argument, so that a digest can be given"
        if argument:
            default = recipe.arguments[argument[1]]
            assert re.fullmatch(r"[a-z0-9.-]+\.[a-z]+/[a-z0-9./-]+(:[\w.-]+|@sha256:[0-9a-f]{64})", default)
            assert ":latest" not in default


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.final.name or image.path.name)
def test_it_ends_as_a_numeric_user_and_installs_nothing_after(image: Dockerfile) -> None:
    final = image.final
    verbs = [one.verb for one in final.instructions]
    assert final.last("USER") == "10001:10001"
    after = verbs[verbs.index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_packages_of_the_system_leave_no_lists_behind(path: Path) -> None:
    for stage in read_dockerfile(path).stages:
        for run in stage.all("RUN"):
            if "apt-get install" in run:
                assert "--no-install-recommends" in run
                assert "rm -rf /var/lib/apt/lists/* /var/cache/apt/*" in run
            assert not re.search(r"\b(curl|wget|git clone)\s+\S*:?//", run), "fetch packages by lock files only"
        assert not stage.all("ADD")


@pytest.mark.parametrize("service", SERVICES)
def test_the_entry_point_is_the_services_module(service: str) -> None:
    final = service_file(service).final
    assert entry_point(final) == ["python", "-m", f"services.{service}"]
    assert (ROOT / "services" / service / "__main__.py").exists()
    assert {"8080", "9090"} <= set(final.last("EXPOSE").split())
    assert not final.all("HEALTHCHECK")  # Kubernetes and compose.yaml define their own checks


@pytest.mark.parametrize("service", SERVICES)
def test_labels_say_what_it_is_and_what_it_was_built_from(service: str) -> None:
    labels = service_file(service).labels()
    assert {name.removeprefix("org.opencontainers.image.") for name in labels} == LABELS
    assert labels["org.opencontainers.image.title"] == f"SearchRL {service}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in service_file(service).final.all("ARG")


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_fetched_at_start_and_home_is_writable_with_a_read_only_root(service: str) -> None:
    environment = service_file(service).final.last("ENV")
    for wanted in ("HF_HUB_OFFLINE=1", "DO_NOT_TRACK=1", "HOME=/tmp/home", "PYTHONDONTWRITEBYTECODE=1"):
        assert wanted in environment.split()


@pytest.mark.parametrize("service", SERVICES)
def test_the_last_stage_takes_finished_things_only(service: str) -> None:
    """It copies from other stages only, so no compiler, package installer, cache or source tree ends up in it."""
    final = service_file(service).final
    assert all("--from=" in text for text in final.all("COPY"))
    assert all(text.split()[-1].startswith("/opt/searchrl/") for text in final.all("COPY"))
    for run in final.all("RUN"):
        assert not re.search(r"\bpip\b|\buv\b", run)
        assert not re.search(r"\b(gcc|g\+\+|build-essential|git)\b", run)
    assert any("drop_installers.py" in run for run in final.all("RUN"))
    assert any("write_sbom.py" in run and "/opt/searchrl/sbom.cdx.json" in run for run in final.all("RUN"))


def test_installers_are_found_wherever_a_base_image_keeps_them(tmp_path: Path) -> None:
    python = tmp_path / "lib/python3.11"
    gone = [python / "ensurepip", python / "site-packages/pip", python / "site-packages/pip-25.1.dist-info"]
    gone += [tmp_path / "opt/.venv/lib/python3.12/site-packages/pip", tmp_path / "bin/pip3"]
    kept = [python / "site-packages/pipeline", python / "site-packages/torch", tmp_path / "bin/python3"]
    for path in (*gone, *kept):
        path.mkdir(parents=True)
    module = runpy.run_path(str(ROOT / "docker/drop_installers.py"))
    found = module["installers_below"]((tmp_path / "lib", tmp_path / "opt"), (tmp_path / "bin",))
    assert sorted(found) == sorted(gone)


@pytest.mark.parametrize("service", SERVICES)
def test_every_install_is_from_a_lock_file_with_hashes(service: str) -> None:
    recipe = service_file(service)
    installs = [run for stage in recipe.stages for run in stage.all("RUN") if "install" in run and "pip" in run]
    for run in installs:
        for command in re.split(r"&&|\|\||\{", run):
            if "pip install" in command and '"$@"' not in command:
                assert "--require-hashes" in command or ("--no-deps --no-build-isolation" in command)
    locks = {source for source in recipe.copied_from_context() if source.endswith((".lock", ".txt"))}
    assert f"requirements/{service}.lock" in locks
    for lock in locks:
        requirements = requirements_of(ROOT / lock)
        assert requirements, lock
        for requirement, hashes in requirements.items():
            assert "==" in requirement, (lock, requirement)
            assert hashes, (lock, requirement)


def test_torch_is_the_version_of_the_development_environment() -> None:
    wanted = re.search(r"^TORCH=(\S+)", (ROOT / "scripts/set_up.sh").read_text(), re.M)
    assert wanted is not None
    assert list(requirements_of(ROOT / "requirements/torch-cpu.lock")) == [f"torch=={wanted[1]}+cpu"]
    (cuda,) = requirements_of(ROOT / "requirements/torch.lock")
    assert cuda.startswith(f"torch=={wanted[1]}")


@pytest.mark.parametrize("service", ["retriever", "trainer"])
def test_the_gpu_variant_installs_its_own_lock_and_torch_beside_the_cuda_libraries(service: str) -> None:
    run = " ".join(service_file(service).stage(f"{service}-dependencies").all("RUN"))
    assert f"{service}-gpu.lock torch.lock" in run
    assert any(name.startswith("nvidia-") for name in requirements_of(ROOT / f"requirements/{service}-gpu.lock"))


def test_an_image_is_built_from_the_shared_stages_and_its_own() -> None:
    stages = {service: [stage.name for stage in service_file(service).stages] for service in SERVICES}
    assert stages == {
        "retriever": ["python", "tools", "app", "torch", "retriever-dependencies", "retriever"],
        "generator": ["python", "tools", "app", "torch", "vllm", "generator-dependencies", "generator"],
        "trainer": ["python", "tools", "app", "torch", "trainer-dependencies", "trainer"],
        "evaluator": ["python", "tools", "app", "evaluator-dependencies", "evaluator"],
    }
    every = {stage.name for stage in read_dockerfile(FILE).stages}
    assert every == {name for names in stages.values() for name in names}


@pytest.mark.parametrize("service", SERVICES)
def test_the_build_sees_what_it_copies_and_nothing_else(service: str) -> None:
    """.dockerignore excludes everything and then admits single paths."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    for source in service_file(service).copied_from_context():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule) or rule.startswith(f"{source}/") for rule in allowed), source
    for unwanted in (".git/config", ".venv/bin/python", "tests/data/README.md", "runs/x", "docker/compose.yaml"):
        assert not any(fnmatch(unwanted, rule) for rule in allowed), unwanted
    assert "**/__pycache__" in lines


def test_the_bill_of_materials_lists_distributions_and_packages(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("write_sbom", ROOT / "docker" / "write_sbom.py")
    assert specification is not None
    assert specification.loader is not None
    sbom = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sbom)
    info = tmp_path / "lib" / "some_thing-1.2+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: Some_Thing\nVersion: 1.2+cpu\nLicense-Expression: MIT\n"
    )
    (python,) = sbom.python_components([tmp_path])
    assert python["purl"] == "pkg:pypi/some-thing@1.2%2Bcpu"
    assert python["licenses"] == [{"expression": "MIT"}]
    status = tmp_path / "status"
    status.write_text(
        "Package: a\nStatus: install ok installed\nVersion: 1:2+3\nArchitecture: all\nDescription: x\n more: text\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n"
    )
    (debian,) = sbom.system_components(status, "debian")
    assert debian["purl"] == "pkg:deb/debian/a@1%3A2%2B3?arch=all"
    assert [one["name"] for one in sbom.system_components(tmp_path / "nowhere", "debian")] == []


def test_the_install_script_is_executable_and_stops_at_the_first_error() -> None:
    script = ROOT / "docker" / "install_locked.sh"
    assert os.access(script, os.X_OK)
    assert "set -eu" in script.read_text()
    assert "--require-hashes" in script.read_text()
