"""The compose file is consistent: checked against the essentials of its specification, without a container engine."""

import json
import os
import re
from typing import Any

import pytest
import yaml

from searchrl.platform.settings import ServiceSettings
from services.evaluator.settings import EvaluatorSettings
from services.generator.settings import GeneratorSettings
from services.policy_server.settings import PolicyServerSettings, read_settings
from services.retriever.settings import RetrieverSettings
from services.trainer.command_line import TrainerSettings, split_assignments
from services.trainer.settings import load_run_config
from tests.cluster.static.dockerfile_reading import ROOT, SERVICES, service_file

FILE = ROOT / "docker" / "compose.yaml"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "retriever": RetrieverSettings,
    "generator": GeneratorSettings,
    "evaluator": EvaluatorSettings,
    "trainer": TrainerSettings,
}
SERVICE_KEYS = {
    "image", "build", "entrypoint", "command", "environment", "ports", "volumes", "healthcheck", "depends_on", "user",
    "read_only", "tmpfs", "cap_drop", "security_opt", "restart", "stop_grace_period", "profiles", "shm_size",
}  # fmt: skip
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Replace ``${NAME:-default}`` as compose does."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda found: variables.get(found[1], "") or found[2] or "", text)


def compose(**variables: str) -> dict[str, Any]:
    return yaml.safe_load(interpolate(FILE.read_text(), variables))


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def pages(service: dict[str, Any]) -> int:
    """The port inside the container that the health check requests."""
    return int(re.search(r"127\.0\.0\.1:(\d+)/readyz", " ".join(service["healthcheck"]["test"]))[1])  # type: ignore[index]


def test_only_keys_of_the_specification_are_used() -> None:
    content = compose()
    assert {key for key in content if not key.startswith("x-")} == {"name", "services", "volumes"}
    for name, service in content["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service.get("healthcheck", {})) <= HEALTH_KEYS, name
        assert service["restart"] in ("no", "unless-stopped"), name
        for key in ("stop_grace_period",):
            assert re.fullmatch(r"\d+[smh]", service.get(key, "1s")), name


@pytest.mark.parametrize("name", sorted(services()))
def test_every_container_is_unprivileged_with_a_read_only_root(name: str) -> None:
    service = services()[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert ":latest" not in service["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_built_from_their_own_recipe(name: str) -> None:
    build = services()[name]["build"]
    assert (FILE.parent / build["context"]).resolve() == ROOT
    assert (build["dockerfile"], build["target"]) == ("docker/Dockerfile", name)
    assert services()[name]["image"] == f"localhost/searchrl/{name}:dev"


def test_dependencies_exist_have_the_check_they_wait_for_and_make_no_ring() -> None:
    all_services = services()
    done: set[str] = set()
    while len(done) < len(all_services):
        ready = [
            name for name, one in all_services.items() if name not in done and set(one.get("depends_on", {})) <= done
        ]
        assert ready, "services wait for each other"
        done |= set(ready)
    for name, service in all_services.items():
        for other, wish in service.get("depends_on", {}).items():
            assert wish["condition"] in CONDITIONS, name
            if wish["condition"] == "service_healthy":
                assert "healthcheck" in all_services[other], (name, other)
            if wish["condition"] == "service_completed_successfully":
                assert all_services[other]["restart"] == "no", (name, other)


def test_ports_are_on_loopback_unique_and_listened_to() -> None:
    outside: list[str] = []
    for name, service in services().items():
        for port in service.get("ports", []):
            host, published, inside = port.split(":")
            assert host == "127.0.0.1", name
            assert inside in service_file(name).final.last("EXPOSE").split(), name
            outside.append(published)
    assert len(set(outside)) == len(outside)


def test_volumes_are_declared() -> None:
    content = compose()
    used = {volume.split(":")[0] for service in content["services"].values() for volume in service.get("volumes", [])}
    assert used == set(content["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_the_environment_is_what_the_service_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled variable would prevent the service from starting; here it fails the test."""
    for variable in [one for one in os.environ if one.startswith(f"{name.upper()}_")]:
        monkeypatch.delenv(variable)
    for variable, value in services()[name]["environment"].items():
        monkeypatch.setenv(variable, str(value))
    settings = SETTINGS[name].from_environment([])
    assert settings.listen.host == "0.0.0.0"
    assert settings.listen.http_port == pages(services()[name])
    assert settings.auth_keys_file is None
    grace = services()[name]["stop_grace_period"]
    assert settings.listen.drain_seconds < int(grace[:-1]) * {"s": 1, "m": 60}[grace[-1]]


def test_the_searcher_serves_under_the_name_that_the_generator_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = services()["searcher"]
    for variable, value in searcher["environment"].items():
        monkeypatch.setenv(variable, value)
    settings = read_settings(searcher["command"])
    assert isinstance(settings, PolicyServerSettings)
    environment = services()["generator"]["environment"]
    assert environment["GENERATOR_SEARCHER__MODEL"] == settings.name
    assert environment["GENERATOR_SEARCHER__BASE_URL"] == f"http://searcher:{settings.listen.http_port}"
    assert environment["GENERATOR_SEARCHER__MODEL_DIR"] == str(settings.model)
    assert pages(searcher) == settings.listen.http_port


def test_targets_name_services_of_the_file_and_their_grpc_port() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("__TARGET"):
                host, port = value.split(":")
                assert (host in services(), port) == (True, "9090"), name


def test_the_trainers_command_is_a_run_it_accepts() -> None:
    command = services()["trainer"]["command"]
    assert all(text.startswith("--set=") for text in command)
    run, process = split_assignments([text.removeprefix("--set=") for text in command])
    config = load_run_config(None, run)
    assert process == []
    assert str(config.output) == "/data/runs/first"
    assert config.services.retriever == "retriever:9090"
    assert services()["trainer"]["profiles"] == ["train"]


def test_a_corpus_of_ones_own_is_indexed_and_served_under_its_name() -> None:
    mine = compose(SEARCHRL_CORPUS="/data/corpora/mine/corpus.jsonl", SEARCHRL_INDEX="mine")["services"]
    assert "--corpus=/data/corpora/mine/corpus.jsonl" in mine["index"]["command"]
    assert "--output=/data/indexes/mine" in mine["index"]["command"]
    assert mine["retriever"]["environment"]["RETRIEVER_INDEX_DIR"] == "/data/indexes/mine"


def test_bake_builds_the_same_images_and_gpu_variants_on_cuda_and_vllm() -> None:
    bake = json.loads((ROOT / "docker" / "bake.json").read_text())
    assert bake["group"]["default"]["targets"] == list(SERVICES)
    for name in [*bake["group"]["default"]["targets"], *bake["group"]["gpu"]["targets"]]:
        target = bake["target"][name]
        service = name.removesuffix("-gpu")
        assert target["target"] == service
        merged: dict[str, str] = {}
        chain = [target]
        while chain[-1].get("inherits"):
            chain.append(bake["target"][chain[-1]["inherits"][0]])
        assert chain[-1]["dockerfile"] == "docker/Dockerfile"
        for part in reversed(chain):
            merged |= part.get("args", {})
        assert merged["VARIANT"] == ("gpu" if name.endswith("-gpu") else "cpu")
        declared = {text.split("=")[0] for stage in service_file(service).stages for text in stage.all("ARG")}
        assert set(merged) - {"VARIANT"} <= declared
    for variable, value in bake["variable"].items():
        if variable.endswith("_IMAGE"):
            assert re.fullmatch(r"docker\.io/[\w/-]+:[\w.-]*\d[\w.-]*", value["default"]), variable
    versions = re.findall(r"ARG VERSION=(\S+)", service_file("trainer").path.read_text())
    assert versions == [bake["variable"]["VERSION"]["default"]] * len(SERVICES)
