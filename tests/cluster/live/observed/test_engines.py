"""vLLM in a pod of the chart answers through the gateway, and can be reached by nobody else but the trainer."""

import json
import re
import subprocess
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.cluster.live.client_pod import client_pod, python_in, release_labels
from tests.cluster.live.cluster_objects import create
from tests.cluster.live.conftest import CHART, Release
from tests.cluster.live.observed.conftest import KEY, QUESTION, Observed, newest_pod, values
from tests.cluster.live.releases import PRESET, await_that, new_namespace, pods, settings

pytestmark = pytest.mark.timeout(600)

ENGINE = "observed-engine-generator"
GATEWAY = "deployment/observed-generator"
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
# Routes of a server in development mode, which also expose weights, sleep and any method of its workers.
DEV_ROUTES = ("/is_paused", "/weight_info")


def test_it_generated_before_it_was_ready(observed_release: Observed) -> None:
    generated = re.search(r"^vllm:generation_tokens_total\{.*\} (\S+)$", observed_release.first_metrics, re.MULTILINE)
    assert generated and float(generated.group(1)) >= 1, "nobody had asked it anything yet"


def test_its_model_came_from_the_store_and_is_verified(observed_release: Observed) -> None:
    (job,) = [pod for pod in pods(observed_release.release, "job-fetch") if pod["status"]["phase"] == "Succeeded"]
    assert "model.safetensors" in (log := observed_release.release.kubectl("logs", job["metadata"]["name"]))
    assert re.search(r"^sha256 [0-9a-f]{64}$", log, re.MULTILINE)
    (waiting,) = newest_pod(observed_release.release, "engine-generator")["spec"]["initContainers"]
    assert "--verify" in waiting["args"]


def test_rag_is_answered_by_it(observed_release: Observed) -> None:
    before = tokens(observed_release)
    events = observed_release.ask("rag", {"id": "q", "text": QUESTION, "filters": {"world": "w002"}})
    final = json.loads(re.findall(r"event: final\ndata: (.*)", events)[0])
    assert final["citations"] and final["answer"]
    assert tokens(observed_release) > before


def tokens(observed: Observed) -> float:
    """The number of tokens that the engine has generated."""
    page = python_in(observed.release, GATEWAY,
        f"import json, urllib.request as u; print(json.dumps(u.urlopen('http://{ENGINE}:8000/metrics').read().decode()))",
    )  # fmt: skip
    return float(re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", page, re.MULTILINE)[0])


def test_chat_completions_reach_it_unchanged(observed_release: Observed) -> None:
    answer = observed_release.http.post("/v1/chat/completions", json={"model": "tiny", "logprobs": True, **CHAT})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert answer.json()["usage"]["completion_tokens"] == len(choice["logprobs"]["content"]) == 6
    assert {"tiny", "searchrl/s3"} <= {model["id"] for model in observed_release.http.get("/v1/models").json()["data"]}


def test_the_generator_does_not_forward_to_its_development_routes(observed_release: Observed) -> None:
    for route in DEV_ROUTES:
        assert observed_release.http.get(route).status_code == 404
    for route in ("/pause", "/collective_rpc", "/sleep", "/update_weights"):
        assert observed_release.http.post(route, json={}).status_code == 404


REACH = f"""
import json, urllib.error, urllib.request
found = {{}}
for path in {DEV_ROUTES!r} + ("/v1/models",):
    try:
        found[path] = urllib.request.urlopen("http://ENGINE:8000" + path, timeout=4).status
    except urllib.error.HTTPError as error:
        found[path] = error.code
    except OSError as error:
        found[path] = "refused"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def probing_pods(observed_release: Observed) -> Iterator[dict[str, Release]]:
    """Pods by role: one in each place that must, or must not, reach the engine."""
    inside = observed_release.release
    with (
        new_namespace() as elsewhere,
        client_pod(inside, "trainer", labels=release_labels(inside, "trainer")),
        client_pod(inside, "job-index", labels=release_labels(inside, "job-index")),
        client_pod(inside, "nobody", labels={"app": "nobody"}),
        client_pod(Release("observed", elsewhere), "posing", labels=release_labels(inside, "generator")) as posing,
    ):
        yield {"trainer": inside, "job-index": inside, "nobody": inside, "posing": posing}


def reached(release: Release, pod: str, host: str = ENGINE) -> dict[str, int | str]:
    return python_in(release, pod, REACH.replace("ENGINE", host))


@pytest.mark.parametrize("who", ["gateway", "trainer"])
def test_gateway_and_trainer_reach_it_with_its_development_routes(
    observed_release: Observed, probing_pods: dict[str, Release], who: str
) -> None:
    pod = GATEWAY if who == "gateway" else who
    everything = dict.fromkeys((*DEV_ROUTES, "/v1/models"), 200)
    await_that(lambda: reached(observed_release.release, pod) == everything, 30, f"the {who} reaches the engine")


@pytest.mark.parametrize("who", ["retriever", "evaluator", "job-index", "nobody", "posing"])
def test_no_other_pod_reaches_it(observed_release: Observed, probing_pods: dict[str, Release], who: str) -> None:
    """``posing`` has the gateway's labels but runs in another namespace."""
    release = probing_pods.get(who, observed_release.release)
    pod = who if who in probing_pods else f"deployment/observed-{who}"
    address = newest_pod(observed_release.release, "engine-generator")["status"]["podIP"]
    await_that(
        lambda: 200 in reached(observed_release.release, GATEWAY, address).values(), 30, "the gateway reaches it there"
    )
    assert set(reached(release, pod, address).values()) == {"refused"}


def test_a_model_with_another_checksum_is_refused_in_one_sentence(observed_release: Observed) -> None:
    """The fetch job is rendered by the chart and runs in addition to the release's own."""
    wrong = "0" * 64
    fetch = {"storage.fetch": [{"uri": "s3://models/tiny", "to": "models/wrong", "sha256": wrong}]}
    rendered = observed_release.release.helm(
        "template", "observed", str(CHART), *PRESET, "--values", str(CHART / "ci" / "vllm-cpu-values.yaml"),
        *settings(values(observed_release.outside.namespace) | fetch), "--show-only", "templates/jobs/fetch.yaml",
        "--api-versions", "monitoring.coreos.com/v1",
    )  # fmt: skip
    (job,) = [one for one in yaml.safe_load_all(rendered) if f"--sha256={wrong}" in json.dumps(one)]
    create(observed_release.release.namespace, job)
    name = f"job/{job['metadata']['name']}"
    observed_release.release.kubectl("wait", "--for=condition=Failed", name, "--timeout=120s")
    words = "jsonpath={.items[*].status.containerStatuses[*].state.terminated}"
    selector = f"job-name={job['metadata']['name']}"
    ended = json.loads(observed_release.release.kubectl("get", "pods", "--selector", selector, "--output", words))
    assert ended["exitCode"] == 2
    sentence = ended["message"].strip().splitlines()[-1]
    assert re.fullmatch(rf"fetch: s3://models/tiny has the checksum [0-9a-f]{{64}}, expected {wrong}", sentence)
    observed_release.release.kubectl("delete", name)


def test_requests_without_its_key_are_refused(observed_release: Observed) -> None:
    bare = httpx.post(
        str(observed_release.http.base_url).rstrip("/") + "/v1/chat/completions",
        json={"model": "tiny", **CHAT},
        trust_env=False,
        timeout=30,
    )
    assert bare.status_code == 401 and KEY not in bare.text


def test_its_pods_have_no_rights(observed_release: Observed) -> None:
    """The service account has exactly the rights of an account that was never granted any."""
    namespace = observed_release.release.namespace
    assert rights(namespace, "observed") == rights(namespace, "never-granted-anything")
    for verb, kind in (("get", "secrets"), ("create", "pods"), ("list", "pods"), ("get", "configmaps")):
        command = [
            "kubectl",
            "auth",
            "can-i",
            verb,
            kind,
            "-n",
            namespace,
            f"--as=system:serviceaccount:{namespace}:observed",
        ]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "no"


def rights(namespace: str, account: str) -> set[tuple[str, ...]]:
    """Everything that ``kubectl auth can-i --list`` prints."""
    release = Release("observed", namespace)
    subject = f"system:serviceaccount:{namespace}:{account}"
    listed = release.kubectl("auth", "can-i", "--list", f"--as={subject}", "--no-headers")
    return {tuple(line.split()) for line in listed.splitlines()}
