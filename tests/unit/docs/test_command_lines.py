"""Command lines of the documentation are accepted by the programs that they call, with all options and values."""

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grpc
import pytest
import yaml

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands import submit
from searchrl.cli.main import COMMANDS
from searchrl.jobs.catalog import render_all
from tests.unit.docs.documented_commands import (
    ROOT,
    SHELLS,
    Command,
    blocks,
    commands,
    inline_code,
    name_of,
    options_of,
    pages,
)
from tests.unit.docs.documented_settings import CLASSES, accepts, settings_of

EVERY = commands()
PLACEHOLDERS = {"a.b=c", "a.b=value", "name=value", "SERVICE.NAME=VALUE"}
"""Assignments that show a form, not a setting."""
UNCHECKED = {
    "openssl": "a program of the system; it makes a random key",
    "cat": "a program of the system; the here-document that it writes is checked",
    "grep": "a program of the system, behind a pipe",
    "sort": "a program of the system, behind a pipe",
    "tail": "a program of the system, behind a pipe",
    "kind": "creates a cluster; not a dependency of this project",
}
"""Programs whose options and arguments no test checks, and why."""
CHECKED = {
    "searchrl": "this module",
    "python": "this module",
    "make": "this module and test_examples.py",
    "curl": "test_requests.py",
    "grpcurl": "test_requests.py",
    "helm": "test_documentation.py and test_examples.py",
    "kubectl": "test_documentation.py and test_cluster_objects.py",
    "docker": "test_cluster_objects.py",
}
"""Programs of the documentation, and the module with the tests of their command lines."""


def of(program: str) -> list[Command]:
    return [found for found in EVERY if found.program == program and len(found.words) > 1]


def complete_ones() -> list[Command]:
    """The commands of ``searchrl`` in code blocks, and those that ``make up`` passes on."""
    found = [one for one in of("searchrl") if not one.is_inline and not one.words[1].startswith("-")]
    for make in of("make"):
        for argument in make.values_of("ARGS"):
            found.append(Command(make.page, ("searchrl", make.words[1], *shlex.split(argument))))
    return found


def texts(found: list[Command]) -> list[str]:
    return [one.text for one in found]


def test_every_program_is_checked_or_says_why_not() -> None:
    assert {found.program for found in EVERY} - set(CHECKED) == set(UNCHECKED)


@pytest.mark.parametrize("command", complete_ones(), ids=texts(complete_ones()))
def test_searchrl_accepts_the_command(command: Command) -> None:
    name, *arguments = command.words[1:]
    parser = CommandParser(f"searchrl {name}", "")
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    parsed = parser.parse(arguments)
    if name == "submit":
        settings = submit.job_settings(parsed)
        step = submit.step_of(parsed, settings)
        job, *_ = render_all(step, settings, operator=parsed.backend == "rayjob")
        assert job["kind"] in ("Job", "RayJob")
    passed_on = [word.partition("=")[0] for word in getattr(parsed, "passed_on", []) if word.startswith("-")]
    assert not passed_on or set(passed_on) <= options_of(parser._module)


def modules() -> list[Command]:
    return [found for found in of("python") if found.values_of("-m")]


@pytest.mark.parametrize("command", modules(), ids=texts(modules()))
def test_a_module_has_the_options(command: Command) -> None:
    (module,) = command.values_of("-m")
    arguments = command.words[command.words.index(module) + 1 :]
    given = {word.partition("=")[0] for word in arguments if word.startswith("-")} - {"--help"}
    if given:
        assert given <= options_of(module), f"python -m {module} --help names {sorted(options_of(module))}"


def assignments() -> Iterator[tuple[str, str, str]]:
    """Page, service and ``NAME=VALUE`` of every ``--set``; the service is empty if the name begins with it."""
    for command in [*of("searchrl"), *complete_ones(), *of("python")]:
        if command.program == "python":
            service = (command.values_of("-m") or [""])[0].removeprefix("services.")
        elif command.words[1] == "submit":
            # Only training has settings; the values of other steps are flags of their programs.
            service = "trainer" if command.words[2:3] == ("train",) else "none"
        else:
            service = {"train": "trainer", "doctor": "trainer", "sft": "trainer.sft"}.get(command.words[1], "")
        for value in command.values_of("--set"):
            if service != "none" and value not in PLACEHOLDERS:
                yield command.page, service, value


@pytest.mark.parametrize(("page", "service", "assignment"), sorted(set(assignments())))
def test_a_setting_exists_and_takes_the_value(page: str, service: str, assignment: str) -> None:
    name, _, value = assignment.partition("=")
    if not service:
        service, _, name = name.partition(".")
    assert service in CLASSES, f"{page}: {assignment} names no service"
    assert accepts(service, name, yaml.safe_load(value)), f"{page}: {service} does not accept {assignment}"


VARIABLE = re.compile(r"(?<![\w/<.-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b")
NO_VARIABLES = {
    **{status.name: "a status of gRPC" for status in grpc.StatusCode},
    "TCP_NODELAY": "an option of sockets",
    "MODEL_DIR": "stands for a folder of the reader",
}
OF_OTHERS = {
    **dict.fromkeys(
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
        "clients of Amazon's services",
    ),
    **dict.fromkeys(
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"), "clients of Azure"
    ),
    **dict.fromkeys(("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"), "clients of Azure"),
    **dict.fromkeys(("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS"), "clients of Google Cloud"),
    **dict.fromkeys(("HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"), "HTTP clients"),
    **dict.fromkeys(("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"), "clients of the Hugging Face hub"),
    **dict.fromkeys(
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_SAMPLER"), "OpenTelemetry"
    ),
    "CUDA_VISIBLE_DEVICES": "CUDA",
    "OMP_NUM_THREADS": "OpenMP",
    "RAY_ADDRESS": "Ray",
    "VLLM_SERVER_DEV_MODE": "vLLM",
}
"""Variables that other projects read, by name."""


def variables() -> list[tuple[str, str]]:
    found = set[tuple[str, str]]()
    for page in pages():
        code = "\n".join([*inline_code(page), *(body for language, body in blocks(page) if language in SHELLS)])
        found |= {(name_of(page), name) for name in VARIABLE.findall(code)}
    return sorted(found)


@pytest.mark.parametrize(("page", "name"), variables())
def test_an_environment_variable_is_read(page: str, name: str) -> None:
    if name in NO_VARIABLES or name in OF_OTHERS or is_a_constant(name):
        return
    for service in CLASSES:
        prefix = f"{service.upper()}_"
        if name.startswith(prefix):
            setting = name.removeprefix(prefix).lower().replace("__", ".")
            assert setting in settings_of(service), f"{page}: {name}"
            return
    assert name in read_by_files(), f"{page}: nothing reads {name}"


@cache
def is_a_constant(name: str) -> bool:
    """Whether a module of the project defines this name, such as a registry that CONTRIBUTING.md mentions."""
    definition = re.compile(rf"^{name}\b.*=", re.MULTILINE)
    return any(
        definition.search(path.read_text()) for top in ("searchrl", "services") for path in (ROOT / top).rglob("*.py")
    )


@cache
def read_by_files() -> frozenset[str]:
    """Names that the Makefile, the scripts, Dockerfiles, compose and the set-up of the tests mention."""
    files: list[Path] = [ROOT / "Makefile", ROOT / "docker" / "compose.yaml", *(ROOT / "scripts").glob("*.sh")]
    files += [ROOT / "docker" / "Dockerfile", *(ROOT / "docker").glob("*.sh"), *(ROOT / "tests").rglob("*.py")]
    own = Path(__file__).resolve()
    return frozenset(name for path in files if path != own for name in VARIABLE.findall(path.read_text()))


def test_the_variables_of_make_are_read() -> None:
    makefile = (ROOT / "Makefile").read_text()
    table = (ROOT / "README.md").read_text().split("| variable | effect |")[1].split("\n\n")[0]
    names = set(re.findall(r"^\| `([A-Z]+)=", table, re.MULTILINE))
    names |= {word.partition("=")[0] for command in of("make") for word in command.words if "=" in word}
    assert len(names) >= 4
    assert [name for name in names if f"$({name})" not in makefile] == []


def test_targets_and_files_of_docker_exist() -> None:
    bake = json.loads((ROOT / "docker" / "bake.json").read_text())
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    profiles = {profile for service in compose.values() for profile in service.get("profiles", [])}
    assert len(of("docker")) >= 5
    for command in of("docker"):
        for file in command.values_of("-f"):
            assert (ROOT / file).is_file(), command.text
        assert set(command.values_of("--profile")) <= profiles, command.text
        if command.words[1:3] == ("buildx", "bake"):
            # what follows ``-f FILE`` are targets or groups
            targets = [word for word in command.words[5:] if not word.startswith("-")]
            assert set(targets) <= {*bake["group"], *bake["target"]}, command.text
        if command.words[1] == "compose":
            verb = next(place for place, word in enumerate(command.words) if word in ("up", "down", "run"))
            named = [word for word in command.words[verb + 1 :] if word in compose or re.fullmatch(r"[a-z]+", word)]
            assert command.words[verb] == "run" or set(named) <= set(compose), command.text
