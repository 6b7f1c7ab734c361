"""The examples of the documentation run as far as this machine allows: shells, bodies, settings, charts and code."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from searchrl.agent.profile import SearcherProfile
from services.generator.settings import GeneratorSettings
from services.trainer.settings import load_run_config
from tests.cluster.static.chart_rendering import APIS, helm
from tests.unit.docs.documented_commands import ROOT, SHELLS, Command, blocks, commands, name_of, pages

# Helm options that only talk to a cluster, and the words after the ones that take a value.
ON_CLUSTER = {"--wait", "--reuse-values", "--create-namespace"}
ON_CLUSTER_WITH_VALUE = {"--timeout", "-n", "--namespace"}


def texts_of(*languages: str) -> list[tuple[str, str]]:
    """Page and text of each code block in these languages."""
    return [(name_of(page), text) for page in pages() for language, text in blocks(page) if language in languages]


@pytest.mark.parametrize(("page", "script"), texts_of(*SHELLS), ids=lambda value: value[:40])
def test_a_shell_can_read_the_script(page: str, script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr}\n{script}"


@pytest.mark.parametrize(("page", "text"), texts_of("python"), ids=lambda value: value[:40])
def test_python_can_read_the_code(page: str, text: str) -> None:
    ast.parse(text, page)


@pytest.mark.parametrize(("page", "text"), texts_of("json"), ids=lambda value: value[:40])
def test_a_searcher_profile_can_be_loaded(page: str, text: str) -> None:
    profile = SearcherProfile.from_json(text)
    assert profile.protocol in text and profile.mode in text


def test_settings_of_examples_are_settings(tmp_path: Path) -> None:
    examples = texts_of("yaml")
    runs, parts_of_runs, generators = "services/trainer/README.md", "docs/training.md", "services/generator/README.md"
    assert {page for page, _ in examples} == {runs, parts_of_runs, generators}
    needed = ("model=m", "output=runs/first", "services.generator=g:1")
    for page, text in examples:
        if page == generators:
            GeneratorSettings.model_validate(yaml.safe_load(text))
            continue
        file = tmp_path / "run.yaml"
        file.write_text(text)
        missing = needed if page == parts_of_runs else ()
        if missing and "mixture" not in yaml.safe_load(text):
            missing = (*missing, "questions=q.jsonl")
        assert load_run_config(file, missing).steps > 0


@pytest.mark.parametrize(
    "words", sorted({found.words[1:] for found in commands() if found.words[0] == "make"}), ids=" ".join
)
def test_make_can_plan_the_target(words: tuple[str, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


def chart_installs() -> list[Command]:
    """Commands that install or upgrade this project's chart."""
    return [
        found
        for found in commands()
        if found.words[:1] == ("helm",)
        and found.words[1] in ("install", "upgrade")
        and "deploy/helm/searchrl" in found.words
    ]


@pytest.mark.parametrize("command", chart_installs(), ids=[found.text for found in chart_installs()])
def test_the_chart_renders_with_the_documented_values(command: Command) -> None:
    arguments: list[str] = []
    words = iter(command.words[2:])
    for word in words:
        if word in ON_CLUSTER_WITH_VALUE:
            next(words)
        elif word not in ON_CLUSTER:
            arguments.append(word)
    if "values.yaml" in arguments:
        pytest.skip("the values are the reader's own")
    preset = [] if {"-f", "--values"} & set(arguments) else ["-f", "deploy/helm/searchrl/values-dev-cpu.yaml"]
    apis = [word for api in APIS for word in ("--api-versions", api)]
    done = helm("template", *[absolute(word) for word in [*preset, *arguments]], *apis)
    assert done.returncode == 0 and "kind: Deployment" in done.stdout, done.stderr


def absolute(word: str) -> str:
    """Return a path of the repository as one that helm finds from any folder."""
    if word.startswith("deploy/"):
        return str(ROOT / word)
    return str(ROOT / "deploy/helm/searchrl" / word) if re.fullmatch(r"values-[\w-]+\.yaml", word) else word
