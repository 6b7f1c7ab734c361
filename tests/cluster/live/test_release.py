"""The CPU preset on a real cluster: a first question, both transports, Search-R1's clients, images and restarts."""

from collections.abc import Callable

import httpx
import pytest

from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.question import Question
from tests.cluster.live.conftest import Release

FILTERS = {"world": "w100"}
QUESTION = Question("q", "What is the creator of Juniper Bank?", (), filters=FILTERS)
pytestmark = pytest.mark.timeout(900)  # above the default: the first test also waits for the installation
Forward = Callable[[str, int], int]


def test_helm_test_asks_a_question_end_to_end(installed_release: Release) -> None:
    assert "Succeeded" in installed_release.helm("test", installed_release.name, "--timeout", "300s")


def test_passages_come_over_rest_and_as_search_r1_asks_for_them(forward: Forward) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{forward('demo-retriever', 8080)}", timeout=30) as http:
        found = http.post("/v1/search", json={"queries": ["Juniper Bank"], "top_k": 3, "filters": FILTERS}).json()
        plain = http.post("/retrieve", json={"queries": ["Juniper Bank"], "topk": 3, "return_scores": True}).json()
    assert [result["rank"] for result in found["queries"][0]["results"]] == [1, 2, 3]
    assert [set(row) for row in plain["result"][0]] == [{"document", "score"}] * 3


async def test_a_question_is_answered_by_searching_over_grpc(forward: Forward) -> None:
    async with GeneratorClient(f"127.0.0.1:{forward('demo-generator', 9090)}") as generator:
        steps = [event async for event in generator.answer(QUESTION, "s3", temperature=0.0)]
    assert steps[-1].final.answer == "Helga Tanaka"
    assert steps[-1].final.citations


async def test_passages_come_over_grpc(forward: Forward) -> None:
    async with RetrieverClient(f"127.0.0.1:{forward('demo-retriever', 9090)}") as retriever:
        results = await retriever.search(["Juniper Bank"], 3, FILTERS)
    assert len(results[0]) == 3


def test_an_upgrade_with_the_same_values_restarts_nothing(installed_release: Release) -> None:
    pods = installed_release.kubectl("get", "pods", "--output", "name")
    installed_release.helm(
        "upgrade", installed_release.name, "deploy/helm/searchrl", "--reuse-values", "--wait", "--timeout", "300s"
    )
    assert installed_release.kubectl("get", "pods", "--output", "name") == pods


@pytest.mark.parametrize("component", ["retriever", "generator", "evaluator", "engine-searcher"])
def test_no_image_has_an_installer_or_a_compiler(installed_release: Release, component: str) -> None:
    """With `pip` as a module or on PATH, an intruder could install anything."""
    code = (
        "import importlib.util as i, shutil as s, getpass;"
        "print([m for m in ('pip', 'ensurepip') if i.find_spec(m)],"
        "[p for p in ('pip', 'pip3', 'uv', 'gcc', 'cc', 'git') if s.which(p)], getpass.getuser())"
    )
    said = installed_release.kubectl(
        "exec", f"deployment/{installed_release.name}-{component}", "--", "python", "-c", code
    )
    assert said.strip().splitlines()[-1] == "[] [] searchrl"


@pytest.mark.parametrize("component", ["retriever", "generator", "evaluator"])
def test_no_pod_had_to_start_twice(installed_release: Release, component: str) -> None:
    path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}"
    selector = f"app.kubernetes.io/component={component}"
    assert set(installed_release.kubectl("get", "pods", "--selector", selector, "--output", path).split()) == {"0"}
