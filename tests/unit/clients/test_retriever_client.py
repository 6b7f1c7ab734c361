"""The retriever's client keeps the order, names the index generation, and raises for any failed query."""

import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from searchrl.clients.call_errors import QueryFailed
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import passage_pb2
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1 import retriever_pb2_grpc as rpc
from searchrl.domain.passage import Passage, SearchResult
from searchrl.errors import ErrorKind, ServiceError
from searchrl.platform.request_context import deadline
from searchrl.platform.retry import RetryPolicy


class EchoRetriever(rpc.RetrieverServicer):
    """Finds a passage named like the query; the query "bad" fails with the given failure."""

    def __init__(self, failure: pb.QueryFailure | None = None, answered: int | None = None) -> None:
        self.requests: list[pb.SearchRequest] = []
        self.seconds_left: list[float | None] = []
        self._failure = failure
        self._answered = answered

    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        self.requests.append(request)
        answers = [
            pb.QueryResults(failure=self._failure)
            if query == "bad"
            else pb.QueryResults(
                results=[pb_result(query)],
            )
            for query in request.queries
        ]
        return pb.SearchResponse(queries=answers[: self._answered], generation="g7")

    async def GetPassages(self, request: pb.GetPassagesRequest, context: object) -> pb.GetPassagesResponse:
        found = [passage_pb2.Passage(id=id, title="T") for id in request.ids if id != "missing"]
        return pb.GetPassagesResponse(passages=found, missing=["missing"])

    async def BuildIndex(
        self, request: pb.BuildIndexRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.BuildIndexProgress]:
        self.seconds_left.append(context.time_remaining())
        yield pb.BuildIndexProgress(phase="done")

    async def ActivateIndex(
        self, request: pb.ActivateIndexRequest, context: grpc.aio.ServicerContext
    ) -> pb.ActivateIndexResponse:
        self.seconds_left.append(context.time_remaining())
        return pb.ActivateIndexResponse()


def pb_result(query: str) -> passage_pb2.SearchResult:
    return passage_pb2.SearchResult(passage=passage_pb2.Passage(id=query), score=0.5, rank=1)


@asynccontextmanager
async def connected(servicer: EchoRetriever, mode: str = "") -> AsyncIterator[RetrieverClient]:
    server = grpc.aio.server()
    rpc.add_RetrieverServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with RetrieverClient(f"127.0.0.1:{port}", mode=mode) as client:
        yield client
    await server.stop(None)


async def test_results_come_in_the_order_of_the_queries() -> None:
    servicer = EchoRetriever()
    async with connected(servicer, mode="hybrid") as client:
        results, generation = await client.search_with_generation(["b", "a"], 4, {"world": "w1"})
    assert results == [[SearchResult(Passage(query, "", ""), 0.5, 1)] for query in ("b", "a")]
    assert generation == "g7"
    sent = servicer.requests[0]
    assert (list(sent.queries), sent.top_k, sent.mode, dict(sent.filters)) == (["b", "a"], 4, "hybrid", {"world": "w1"})


async def test_builds_and_activations_take_as_long_as_they_need_within_the_callers_deadline() -> None:
    servicer = EchoRetriever()
    async with connected(servicer) as client:
        assert [progress.phase async for progress in client.build_index("corpus", "bm25")] == ["done"]
        await client.activate_index("g")
        with deadline(3600):
            await client.activate_index("g")
    building, activating, with_deadline = servicer.seconds_left
    assert (building, activating) == (None, None)
    assert with_deadline is not None
    assert with_deadline > 3000


async def test_unknown_passages_are_left_out() -> None:
    async with connected(EchoRetriever()) as client:
        assert [passage.id for passage in await client.get_passages(["a", "missing", "b"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("failure", "kind", "shown"),
    [
        (pb.QueryFailure(kind="internal", message="disk gone"), ErrorKind.INTERNAL, "query 'bad' failed: disk gone"),
        (pb.QueryFailure(kind="invalid", message="note: odd"), ErrorKind.INVALID, "query 'bad' failed: note: odd"),
        (pb.QueryFailure(kind="unheard of", message="odd"), ErrorKind.UNAVAILABLE, "query 'bad' failed: odd"),
    ],
)
async def test_a_failed_query_is_raised_never_an_empty_list(
    failure: pb.QueryFailure, kind: ErrorKind, shown: str
) -> None:
    async with connected(EchoRetriever(failure)) as client:
        with pytest.raises(QueryFailed) as caught:
            await client.search(["good", "bad"], 3, {})
    assert caught.value.kind is kind
    assert str(caught.value) == shown
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind) == (shown, kind)


@pytest.mark.parametrize("seconds", [None, 2.5])
async def test_a_failed_query_says_when_to_retry(seconds: float | None) -> None:
    failure = pb.QueryFailure(kind="unavailable", message="a shard is away", retry_after_seconds=seconds)
    async with connected(EchoRetriever(failure)) as client:
        with pytest.raises(QueryFailed) as caught:
            await client.search(["good", "bad"], 3, {})
    assert caught.value.retry_after_seconds == seconds
    exact = RetryPolicy(uniform=lambda low, _: low, first_seconds=0.0)
    assert exact.pause_after(caught.value, 1) == (seconds or 0.0)


async def test_too_few_answers_are_an_error() -> None:
    async with connected(EchoRetriever(answered=1)) as client:
        with pytest.raises(ServiceError, match="answered 1 of 2 queries"):
            await client.search(["a", "b"], 3, {})
