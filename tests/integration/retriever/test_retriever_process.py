"""The real process: both transports, readiness, swaps, builds and stopping."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1 import retriever_pb2_grpc as rpc
from tests.integration.retriever.conftest import (
    REPOSITORY,
    SAMPLES,
    RetrieverProcess,
    environment,
    run_build,
    wait_until,
)

Start = Callable[..., RetrieverProcess]
CORPUS = str(SAMPLES / "squad_en" / "corpus.jsonl.gz")
QUERY = "How many career sacks did Jared Allen have?"


def test_rest_and_grpc_give_the_same_answer(start_retriever: Start, bm25_index: Path, http: httpx.Client) -> None:
    retriever = start_retriever(bm25_index)
    assert http.get(f"{retriever.http}/readyz").json() == {"status": "ok"}
    over_rest = http.post(f"{retriever.http}/v1/search", json={"queries": [QUERY, ""], "top_k": 2}).json()
    with grpc.insecure_channel(retriever.grpc) as channel:
        over_grpc = rpc.RetrieverStub(channel).Search(pb.SearchRequest(queries=[QUERY, ""], top_k=2))
    assert [hit["passage"]["id"] for hit in over_rest["queries"][0]["results"]] == ["0", "198"]
    assert [hit.passage.id for hit in over_grpc.queries[0].results] == ["0", "198"]
    assert over_rest["generation"] == over_grpc.generation
    assert over_rest["queries"][1]["error"] == over_grpc.queries[1].error == "invalid: the query is empty"
    assert retriever.stop() == 0


def test_errors_have_their_status_on_both_transports(sample_retriever: RetrieverProcess, http: httpx.Client) -> None:
    retriever = sample_retriever
    refused = http.post(f"{retriever.http}/v1/search", json={"queries": ["x"], "top_k": 1000})
    assert (refused.status_code, refused.json()["error"]["kind"]) == (400, "invalid")
    assert http.post(f"{retriever.http}/v1/admin/indexes/unknown/activate").status_code == 404
    with grpc.insecure_channel(retriever.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        rpc.RetrieverStub(channel).Search(pb.SearchRequest(queries=["x"], mode="dense"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]


def test_without_an_index_it_waits_not_ready_and_serves_once_one_is_built(
    start_retriever: Start, tmp_path: Path, http: httpx.Client
) -> None:
    folder = tmp_path / "later"
    retriever = start_retriever(folder, RETRIEVER_FOLLOW_SECONDS="0.1")
    waiting = http.get(f"{retriever.http}/readyz")
    assert waiting.status_code == 503
    assert "build one with" in waiting.json()["status"]
    assert http.post(f"{retriever.http}/v1/search", json={"queries": ["x"]}).status_code == 503
    assert http.get(f"{retriever.http}/livez").status_code == 200
    assert run_build("--corpus", CORPUS, "--output", str(folder)).returncode == 0
    wait_until(lambda: http.get(f"{retriever.http}/readyz").status_code == 200, "readiness")
    assert http.post(f"{retriever.http}/v1/search", json={"queries": [QUERY]}).status_code == 200


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RETRIEVER_INDEX_DIR": "/nowhere", "RETRIEVER_REQUIRE_INDEX": "true"}, "no index in /nowhere"),
        ({}, "index_dir"),
        ({"RETRIEVER_INDEX_DIR": "/x", "RETRIEVER_INDEXDIR": "/y"}, "RETRIEVER_INDEXDIR"),
    ],
)
def test_a_start_that_cannot_work_ends_with_code_2_and_one_sentence(variables: dict[str, str], message: str) -> None:
    ports = {"RETRIEVER_LISTEN__HTTP_PORT": "0", "RETRIEVER_LISTEN__GRPC_PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "services.retriever"],
        cwd=REPOSITORY, env=environment(**ports, **variables), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_build_over_rest_reports_progress_and_goes_into_service(
    start_retriever: Start, bm25_index: Path, tmp_path: Path, http: httpx.Client
) -> None:
    retriever = start_retriever(tmp_path / "fresh")
    with http.stream(
        "POST", f"{retriever.http}/v1/admin/indexes", json={"corpus": CORPUS, "kind": "bm25", "activate": True}
    ) as stream:
        events = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data:")]
    assert events[-1]["generation"]
    (listed,) = http.get(f"{retriever.http}/v1/admin/indexes").json()["indexes"]
    assert (listed["generation"], listed["active"], listed["passages"]) == (events[-1]["generation"], True, 240)
    assert http.get(f"{retriever.http}/readyz").status_code == 200


def test_a_build_survives_the_connection_of_its_caller(
    start_retriever: Start, tmp_path: Path, http: httpx.Client
) -> None:
    retriever = start_retriever(tmp_path / "fresh")
    body = {"corpus": CORPUS, "kind": "bm25", "activate": True}
    with http.stream("POST", f"{retriever.http}/v1/admin/indexes", json=body) as stream:
        assert next(line for line in stream.iter_lines() if line.startswith("data:"))
    wait_until(lambda: http.get(f"{retriever.http}/readyz").status_code == 200, "the index to serve", retriever.log)
    assert len(http.get(f"{retriever.http}/v1/admin/indexes").json()["indexes"]) == 1


def test_swapping_under_load_over_the_wire_loses_no_request(
    start_retriever: Start, tmp_path: Path, http: httpx.Client
) -> None:
    folder = tmp_path / "two"
    for _ in range(2):
        assert run_build("--corpus", CORPUS, "--output", str(folder)).returncode == 0
    retriever = start_retriever(folder)
    names = [index["generation"] for index in http.get(f"{retriever.http}/v1/admin/indexes").json()["indexes"]]
    failures: list[str] = []
    seen: set[str] = set()
    stop = threading.Event()

    def search(number: int) -> None:
        with grpc.insecure_channel(retriever.grpc) as channel:
            stub = rpc.RetrieverStub(channel)
            count = 0
            while not stop.is_set():
                count += 1
                try:
                    answer = stub.Search(pb.SearchRequest(queries=[f"{QUERY} {number} {count}"], top_k=1), timeout=20)
                    seen.add(answer.generation)
                    if answer.queries[0].results[0].passage.id != "0":
                        failures.append("wrong passage")
                except grpc.RpcError as error:
                    failures.append(str(error))

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for swap in range(10):
        name = names[swap % 2]
        assert http.post(f"{retriever.http}/v1/admin/indexes/{name}/activate").json()["active"]["generation"] == name
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert failures == []
    assert seen == set(names)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose build takes seconds."""
    path = tmp_path_factory.mktemp("large") / "large.jsonl"
    with path.open("w") as file:
        for number in range(60_000):
            file.write(json.dumps({"id": str(number), "contents": f"passage {number} of a large corpus " * 10}) + "\n")
    return path


def test_a_build_killed_half_way_leaves_the_old_generation(
    start_retriever: Start, tmp_path: Path, http: httpx.Client, large: Path
) -> None:
    folder = tmp_path / "killed"
    assert run_build("--corpus", CORPUS, "--output", str(folder)).returncode == 0
    current = (folder / "current").read_text()
    building = subprocess.Popen(
        [sys.executable, "-m", "services.retriever.build_index", "--corpus", str(large), "--output", str(folder),
         "--progress", "json"],
        cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert building.stderr is not None
    for line in building.stderr:
        if line.startswith("{") and json.loads(line)["phase"] == "bm25":
            break
    building.kill()
    building.wait()
    building.stderr.close()
    assert (folder / "current").read_text() == current
    retriever = start_retriever(folder)
    assert http.post(f"{retriever.http}/v1/search", json={"queries": [QUERY]}).json()["generation"] == current.strip()
    assert len(http.get(f"{retriever.http}/v1/admin/indexes").json()["indexes"]) == 1
    assert run_build("--corpus", CORPUS, "--output", str(folder)).returncode == 0
    assert not [path.name for path in (folder / "generations").iterdir() if path.name.startswith(".")]


def test_a_build_killed_with_its_retriever_is_reported_at_the_next_start_and_starts_clean(
    start_retriever: Start, tmp_path: Path, http: httpx.Client, large: Path
) -> None:
    folder = tmp_path / "fresh"
    killed = start_retriever(folder)
    url, body = f"{killed.http}/v1/admin/indexes", {"corpus": str(large), "kind": "bm25", "activate": True}
    with http.stream("POST", url, json=body) as stream, pytest.raises(httpx.HTTPError):
        for line in stream.iter_lines():
            if line.startswith("data:") and json.loads(line.removeprefix("data:"))["phase"] == "bm25":
                killed.process.kill()
    killed.process.wait()
    retriever = start_retriever(folder)

    def indexes() -> dict[str, Any]:
        return http.get(f"{retriever.http}/v1/admin/indexes").json()

    # The build process notices its parent's death and ends a moment later.
    wait_until(lambda: bool(indexes()["interrupted_build"]), "the build to end", retriever.log)
    assert re.fullmatch(
        r"the build of a bm25 index of large\.jsonl, started .*, was killed; request it again",
        indexes()["interrupted_build"],
    )
    assert indexes()["indexes"] == [] and http.get(f"{retriever.http}/readyz").status_code == 503
    again = {"corpus": CORPUS, "kind": "bm25", "activate": True}
    assert '"generation":"2' in http.post(f"{retriever.http}/v1/admin/indexes", json=again, timeout=120).text
    assert indexes()["interrupted_build"] == "" and [index["active"] for index in indexes()["indexes"]] == [True]
    assert not [path.name for path in (folder / "generations").iterdir() if path.name.startswith(".")]
    third = start_retriever(folder)
    assert "was killed" not in third.log.read_text()


def test_bad_rows_stop_the_command_unless_it_is_asked_to_skip_them(tmp_path: Path) -> None:
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text('{"id": "a", "contents": "x"}\n{"id": "a", "contents": "y"}\n')
    refused = run_build("--corpus", str(corpus), "--output", str(tmp_path / "i"))
    assert refused.returncode == 2
    assert f"{corpus}:2: duplicate id 'a'" in refused.stderr
    assert not (tmp_path / "i" / "current").exists()
    skipped = run_build("--corpus", str(corpus), "--output", str(tmp_path / "i"), "--skip-bad-rows")
    assert skipped.returncode == 0
    assert "skipped 1 unusable rows" in skipped.stderr
    assert (tmp_path / "i" / "current").read_text() == skipped.stdout


def test_metrics_count_queries_batches_cache_lookups_and_passages(
    start_retriever: Start, bm25_index: Path, http: httpx.Client
) -> None:
    retriever = start_retriever(bm25_index)
    for _ in range(2):
        http.post(f"{retriever.http}/v1/search", json={"queries": [QUERY]})
    metrics = http.get(f"{retriever.http}/metrics").text
    for expected in (
        'searchrl_retriever_queries_total{mode="bm25",outcome="ok"} 2.0',
        'searchrl_retriever_cache_lookups_total{layer="memory",result="hit"} 1.0',
        "retriever_batch_queries_count 1.0",
        "searchrl_retriever_index_passages 240.0",
        'kind="bm25"} 1.0',
        "searchrl_retriever_queue_depth_queries 0.0",
    ):
        assert expected in metrics
