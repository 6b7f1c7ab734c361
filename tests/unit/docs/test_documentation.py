"""Everything that the documentation names exists: files, commands, options, settings and chart values."""

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.main import COMMANDS
from tests.cluster.static.chart_rendering import tool
from tests.unit.docs.documented_commands import (
    ROOT,
    Command,
    anchors,
    commands,
    inline_code,
    links,
    name_of,
    options_of,
    pages,
)
from tests.unit.docs.documented_settings import setting_names

CHART = "deploy/helm/searchrl"
SCHEMA: dict[str, Any] = json.loads((ROOT / CHART / "values.schema.json").read_text())
# "`NAME` of `path.py`", "`NAME` in `path.py`" or "`NAME` ... (`path.py`)": a name that the file defines.
DEFINED_IN = re.compile(
    r"`(\w+)`(?: interface| method)?(?: \w+){0,3}? (?:in|of) `([\w/]+\.py)`|`(\w+)`[^`.]{0,40}\(`([\w/]+\.py)`\)"
)
TREE_COLUMN = 21  # of the README's tree, where the descriptions start
VALUE_FLAGS = ("--set", "--set-json", "--set-string", "--set-file")
FILES = (".py", ".md", ".json", ".jsonl", ".yaml", ".crt", ".key", ".safetensors", ".sqlite", ".html", ".sh")
DOTTED = re.compile(r"([a-z][A-Za-z]*(?:\.[A-Za-z0-9_-]+)+)(?:[=:] ?\S.*)?")
# Paths with a placeholder, such as `services/generator/methods/<name>.py`, do not match.
FOLDERS = "deploy|docker|docs|proto|requirements|scripts|searchrl|services|tests|tools"
REPOSITORY_PATH = re.compile(rf"(?:{FOLDERS})/[\w./*-]*")
EVERY = commands()


def of(program: str) -> list[Command]:
    return [command for command in EVERY if command.words[0] == program and len(command.words) > 1]


def texts(found: list[Command]) -> list[str]:
    return [command.text for command in found]


def test_there_are_commands_to_check() -> None:
    assert {command.words[0] for command in EVERY} >= {"helm", "kubectl", "searchrl", "make", "python"}


@pytest.mark.parametrize(("page", "file", "anchor"), sorted(set(links())))
def test_a_link_has_a_target(page: str, file: str, anchor: str) -> None:
    assert (ROOT / file).exists(), f"{page} links to {file}"
    assert not anchor or anchor in anchors(ROOT / file), f"{page} links to {file}#{anchor}"


@pytest.mark.parametrize("command", of("searchrl"), ids=texts(of("searchrl")))
def test_a_command_of_searchrl_takes_these_options(command: Command) -> None:
    name = command.words[1]
    if name.startswith("-"):
        return
    assert name in COMMANDS
    parser = CommandParser("searchrl", "")
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    passed_on = options_of(parser._module) if parser._module else frozenset[str]()
    assert set(command.flags) <= set(parser._option_string_actions) | passed_on
    first = next((action for action in parser._actions if not action.option_strings), argparse.Action([], ""))
    if first.choices and len(command.words) > 2 and command.words[2].islower():
        assert command.words[2] in first.choices


@pytest.mark.parametrize("command", of("make"), ids=texts(of("make")))
def test_make_has_the_target(command: Command) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in command.words[1:] if "=" not in word} <= set(targets)


@pytest.mark.parametrize("command", of("python"), ids=texts(of("python")))
def test_python_finds_the_module(command: Command) -> None:
    modules = command.values_of("-m")
    assert all(importlib.util.find_spec(name) for name in modules)
    for word in command.words[1:2]:
        assert word.startswith("-") or (ROOT / word).exists()


@pytest.mark.parametrize("program", ["helm", "kubectl"])
def test_helm_and_kubectl_have_the_options(program: str) -> None:
    if tool(program) is None:
        pytest.skip(f"NO {program}: its options in the documentation are not checked")
    for command in of(program):
        verbs = [word for word in command.words[1:] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        if verbs:
            assert set(command.flags) <= known_options(program, verb_of(program, command)), command.text


def verb_of(program: str, command: Command) -> tuple[str, ...]:
    """The words up to the innermost subcommand, without options between them."""
    words = list(command.words[1:])
    while words and words[0].startswith("-"):
        words = words[1 if "=" in words[0] else 2 :]
    deep = {f"kubectl {verb}" for verb in ("auth", "create", "rollout", "set", "top")}
    deep |= {f"helm {verb}" for verb in ("repo", "show", "get")}
    two = len(words) > 1 and f"{program} {words[0]}" in deep and not words[1].startswith("-")
    return tuple(words[: 3 if words[:2] == ["create", "secret"] else 2 if two else 1])


@cache
def known_options(program: str, verb: tuple[str, ...]) -> frozenset[str]:
    path = tool(program)
    assert path
    calls = [[str(path), *verb, "--help"], *([[str(path), "options"]] if program == "kubectl" else [])]
    done = [subprocess.run(call, capture_output=True, text=True, check=False) for call in calls]
    assert all(result.returncode == 0 for result in done), f"{program} {' '.join(verb)} is no command"
    return frozenset(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", "".join(result.stdout for result in done)))


def chart_commands() -> list[Command]:
    return [command for command in of("helm") if any(word.endswith(CHART) for word in command.words)]


@pytest.mark.parametrize("command", chart_commands(), ids=texts(chart_commands()))
def test_the_chart_has_the_values_and_the_files(command: Command) -> None:
    for assignment in command.values_of(*VALUE_FLAGS):
        for key in re.findall(r"(?:^|,)([A-Za-z][\w.\[\]\\/-]*)=", assignment):
            assert in_schema(key), f"{key}: {command.text}"
    for file in command.values_of("-f", "--values"):
        assert not file.startswith("deploy/") or (ROOT / file).is_file(), command.text


@pytest.mark.parametrize("command", of("kubectl"), ids=texts(of("kubectl")))
def test_kubectl_is_given_files_that_exist(command: Command) -> None:
    for file in command.values_of("-f", "--filename"):
        assert not file.startswith("deploy/") or (ROOT / file).exists()


def test_the_table_of_connections_is_the_charts() -> None:
    """docs/operations/security.md has the table from which the chart writes its network policies."""
    template = (ROOT / CHART / "templates" / "_network.tpl").read_text()
    body = template.split('define "searchrl.edgeTable" -}}')[1].split("{{- end }}")[0]
    rows = [
        f"| {edge['from']} | {edge['to']} | {', '.join(map(str, edge['ports'])) or 'all'} |"
        for edge in yaml.safe_load(body)
    ]
    text = (ROOT / "docs" / "operations" / "security.md").read_text()
    assert "\n".join(["| from | to | ports |", "|---|---|---|", *rows, ""]) in text


def in_schema(key: str) -> bool:
    """Whether a key such as ``engines.searcher.gpu.count`` is a value of the chart."""
    if key.startswith("gpuProfiles."):
        return True  # keys of these maps contain dots
    node: dict[str, Any] = SCHEMA
    for part in re.sub(r"\[\d+\]", ".[]", key).split("."):
        node = resolved(node)
        if part == "[]":
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        elif node.get("additionalProperties", True) is False or "properties" in node:
            return False
    return True


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_a_path_in_the_text_exists(page: Path) -> None:
    """Checks paths such as ``searchrl/errors.py`` that begin with a folder of the repository."""
    for code in inline_code(page):
        found = REPOSITORY_PATH.fullmatch(code)
        assert not found or any(ROOT.glob(code.rstrip("/"))), f"{name_of(page)}: {code}"


def test_the_readme_lists_the_folders_that_exist() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree\n```\n")[1].split("```")[0]
    parent, listed = "", set[str]()
    for line in tree.splitlines():
        names = re.findall(r"([a-z_]+)/", line[:TREE_COLUMN])
        if line.startswith(" "):
            listed |= {f"{parent}/{name}" for name in names}
        else:
            listed |= set(names)
            parent = names[0]
    assert not [name for name in listed if not (ROOT / name).is_dir()]
    for package in ("searchrl", "services"):
        folders = {f"{package}/{path.parent.name}" for path in (ROOT / package).glob("*/__init__.py")}
        assert folders <= listed, "the README's tree lacks folders"


def test_the_steps_of_contributing_name_what_the_files_define() -> None:
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    found = [(first or third, second or fourth) for first, second, third, fourth in DEFINED_IN.findall(text)]
    assert len(found) >= 8
    for name, file in found:
        definition = rf"^\s*(?:class|def|async def) {name}\b|^\s*{name}\s*[:=]"
        assert re.search(definition, (ROOT / file).read_text(), re.MULTILINE), f"{file} does not define {name}"


@pytest.mark.parametrize("page", [page for page in pages() if "runbooks" not in page.parts], ids=name_of)
def test_settings_and_values_in_the_text_exist(page: Path) -> None:
    """Checks names such as ``redis.mode`` whose first part belongs to a chart value or a setting."""
    known = set(setting_names())
    first = {*SCHEMA["properties"], *(name.split(".")[0] for name in known)}
    for code in inline_code(page):
        found = DOTTED.fullmatch(code)
        if found and found[1].split(".")[0] in first and not found[1].endswith(FILES):
            assert found[1] in known or in_schema(found[1]), f"{name_of(page)}: {found[1]}"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_lines_of_prose_have_at_most_100_columns(page: Path) -> None:
    """Tables, code blocks and lines that hold one long piece of code are exempt."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in text.splitlines():
        is_code = len(re.sub(r"`[^`]*`", "", line).split()) <= 3
        assert len(line) <= 100 or line.startswith("|") or is_code, f"{name_of(page)}: {line}"


def test_workflows_call_targets_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called: set[str] = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yaml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        called |= {target for step in steps for target in re.findall(r"^make ([a-z-]+)$", step, re.MULTILINE)}
    assert called == {"lint", "test", "test-chart"} and called <= targets
