"""The retriever's client and the agent loop's searcher against the real process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.clients.call_errors import QueryFailed
from searchrl.clients.coalescing_searcher import CoalescingSearcher
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.errors import ErrorKind, Unavailable
from tests.integration.retriever.conftest import RetrieverProcess, run_build


@pytest.fixture(scope="session")
def worlds_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three worlds with four passages each, whose texts differ only in a number."""
    folder = tmp_path_factory.mktemp("worlds")
    corpus = folder / "corpus.jsonl"
    rows = [
        {"id": f"w{world}-{number}", "contents": f'"Film {number}"\nAmber Falcon was directed by {number}.',
         "metadata": {"world": f"w{world}"}}
        for world in range(3) for number in range(4)
    ]  # fmt: skip
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = run_build("--corpus", str(corpus), "--output", str(folder / "index"))
    assert built.returncode == 0, built.stderr
    return folder / "index"


async def test_the_loops_searcher_finds_passages_of_its_world_only(
    start_retriever: Callable[..., RetrieverProcess], worlds_index: Path
) -> None:
    client = RetrieverClient(start_retriever(worlds_index).grpc)
    results, generation = await client.search_with_generation(["Amber Falcon", "Film 2"], 4, {"world": "w1"})
    assert [[result.passage.id for result in found] for found in results] == [
        ["w1-0", "w1-1", "w1-2", "w1-3"],  # equal scores: corpus order
        ["w1-2", "w1-0", "w1-1", "w1-3"],
    ]
    assert results[0][0].passage.metadata == {"world": "w1"}
    assert [index.generation for index in await client.list_indexes() if index.active] == [generation]
    assert [passage.title for passage in await client.get_passages(["w2-3", "w0-0"])] == ["Film 3", "Film 0"]
    with pytest.raises(QueryFailed, match="the query is empty") as failure:
        await client.search(["Amber", ""], 3, {})
    assert failure.value.kind is ErrorKind.INVALID
    searcher = CoalescingSearcher(client)
    assert len((await searcher.search(["Amber"], 2, {"world": "w0"}))[0]) == 2
    await client.close()


async def test_without_an_index_the_client_is_asked_to_retry(
    start_retriever: Callable[..., RetrieverProcess], tmp_path: Path
) -> None:
    client = RetrieverClient(start_retriever(tmp_path / "none").grpc, timeout_seconds=3)
    with pytest.raises(Unavailable, match="no index"):
        await client.search(["Amber"], 3, {})
    await client.close()
