"""The services accept the settings that the chart writes for them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from searchrl.platform.settings import ServiceSettings
from services.evaluator.settings import EvaluatorSettings
from services.generator.settings import GeneratorSettings
from services.policy_server.settings import PolicyServerSettings
from services.retriever.settings import RetrieverSettings
from tests.cluster.static.chart_rendering import CASES, RELEASE, TOGGLES, named, of_kind, render

SETTINGS: dict[str, type[ServiceSettings]] = {
    "retriever": RetrieverSettings,
    "generator": GeneratorSettings,
    "evaluator": EvaluatorSettings,
    "engine-searcher": PolicyServerSettings,
}


def settings_of(
    documents: tuple[dict[str, Any], ...], component: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> ServiceSettings:
    """Load the rendered settings with the pod's own environment, as its process does."""
    path = folder / "config.yaml"
    path.write_text(named(documents, "ConfigMap", f"{RELEASE}-{component}")["data"]["config.yaml"])
    container = named(documents, "Deployment", f"{RELEASE}-{component}")["spec"]["template"]["spec"]["containers"][0]
    given: dict[str, str] = {}
    for variable in container["env"]:
        text = variable.get("value", "from-a-secret")
        given[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: given.get(match[1], ""), text)
    for name, text in given.items():
        monkeypatch.setenv(name, str(path) if name.endswith("_CONFIG") else text)
    return SETTINGS[component].from_environment([])


@pytest.mark.parametrize(("preset", "toggle"), CASES)
def test_every_rendered_file_is_accepted_by_its_service(
    preset: str, toggle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = render(preset, *TOGGLES[toggle])
    for component in SETTINGS:
        names = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
        if f"{RELEASE}-{component}" in names:
            with monkeypatch.context() as patch:
                settings_of(documents, component, tmp_path, patch)


def test_the_small_world_is_wired_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = settings_of(render("dev-cpu"), "generator", tmp_path, monkeypatch)
    assert isinstance(generator, GeneratorSettings) and generator.searcher and generator.retriever
    assert generator.engine.kind == "reader" and generator.judge.engine is None
    assert generator.searcher.base_url == "http://rel-engine-searcher:8000"
    assert generator.retriever.target == "rel-retriever-headless:9090"
    assert generator.searcher.model_dir == Path("/data/models/small-world-searcher")


def test_secrets_reach_the_services_by_variables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = render("gpu-prod", *TOGGLES["judge of its own"], *TOGGLES["redis embedded"])
    generator = settings_of(documents, "generator", tmp_path, monkeypatch)
    retriever = settings_of(documents, "retriever", tmp_path, monkeypatch)
    assert isinstance(generator, GeneratorSettings) and isinstance(retriever, RetrieverSettings)
    assert generator.judge.engine and generator.judge.engine.key and generator.retriever
    assert generator.judge.engine.key.get_secret_value() == "from-a-secret"
    assert generator.retriever.key and generator.retriever.key.get_secret_value() == "from-a-secret"
    assert retriever.cache.redis_url
    assert retriever.cache.redis_url.get_secret_value() == "redis://:from-a-secret@rel-redis:6379/0"
    for document in of_kind(documents, "ConfigMap"):
        assert "from-a-secret" not in yaml.safe_dump(document)


def test_what_the_chart_knows_takes_precedence_over_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("retriever.config.limits.max_top_k=7", "retriever.drainSeconds=33", "retriever.index.name=wiki")
    retriever = settings_of(render("dev-cpu", *sets), "retriever", tmp_path, monkeypatch)
    assert isinstance(retriever, RetrieverSettings)
    assert retriever.limits.max_top_k == 7
    assert retriever.listen.drain_seconds == 33
    assert retriever.index_dir == Path("/data/indexes/wiki")


@pytest.mark.parametrize("component", ["retriever", "generator", "evaluator", "engine-searcher"])
def test_a_changed_setting_rolls_the_pods_of_its_service_only(component: str) -> None:
    change = {
        "retriever": "retriever.config.limits.max_top_k=7",
        "generator": "generator.config.limits.max_answers=7",
        "evaluator": "evaluator.config.runs.attempts=7",
        "engine-searcher": "engines.searcher.policyServer.slots=7",
    }[component]
    before, after = (
        {
            deployment["metadata"]["name"]: deployment["spec"]["template"]["metadata"]["annotations"]
            for deployment in of_kind(render("dev-cpu", *sets), "Deployment")
        }
        for sets in ((), (change,))
    )
    assert {name for name in before if before[name] != after[name]} == {f"{RELEASE}-{component}"}
