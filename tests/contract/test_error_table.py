"""Tests that every kind of failure is reported alike over both transports, for unary and streaming calls."""

from collections.abc import AsyncIterator

import httpx
import pytest

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverServicer, RetrieverStub
from searchrl.errors import ERROR_BY_KIND, Conflict, ErrorKind, ServiceError
from searchrl.platform.retry import ONE_ATTEMPT
from searchrl.platform.status_map import STATUS
from tests.contract.harness import RETRIEVER_MIRRORS, serving_retriever

SEARCH, _, BUILD = RETRIEVER_MIRRORS
RETRY_AFTER_SECONDS = 7.0


class FailingRetriever(RetrieverServicer):
    """Fails with the kind that the request names; "bug" is an unexpected exception, "long" has the query as message."""

    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        raise Conflict(request.queries[0]) if request.mode == "long" else error_named(request.mode)

    async def BuildIndex(self, request: pb.BuildIndexRequest, context: object) -> AsyncIterator[pb.BuildIndexProgress]:
        if request.activate:  # fail after the first message
            yield pb.BuildIndexProgress(phase="reading", total=2)
        raise error_named(request.kind)


def error_named(name: str) -> Exception:
    if name == "bug":
        return ValueError("secret detail")
    return ERROR_BY_KIND.get(ErrorKind(name), ServiceError)(f"it is {name}, für immer", RETRY_AFTER_SECONDS)


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_a_unary_failure_follows_the_table_over_both(kind: ErrorKind) -> None:
    request = pb.SearchRequest(queries=["q"], mode=kind.value)
    async with serving_retriever(FailingRetriever()) as both:
        by_grpc = await both.over_grpc(RetrieverStub, "Search", request)
        by_http = await both.over_http(SEARCH, request)
    assert by_grpc == by_http
    assert (by_grpc.error, by_grpc.retry_after) == (kind.value, RETRY_AFTER_SECONDS)
    assert (both.http_status, both.grpc_code) == STATUS[kind]


@pytest.mark.parametrize("kind", list(ErrorKind))
@pytest.mark.parametrize("begun", [False, True], ids=["before the first message", "after it"])
async def test_a_failing_stream_follows_the_table_over_both(kind: ErrorKind, begun: bool) -> None:
    request = pb.BuildIndexRequest(corpus="c", kind=kind.value, activate=begun)
    async with serving_retriever(FailingRetriever()) as both:
        by_grpc = await both.over_grpc(RetrieverStub, "BuildIndex", request)
        by_http = await both.over_http(BUILD, request)
    assert by_grpc.error == by_http.error == kind.value
    assert by_grpc.message == by_http.message
    # 64-bit integers are strings in protobuf's JSON.
    assert by_grpc.messages == by_http.messages == ([{"phase": "reading", "total": "2"}] if begun else [])
    assert both.grpc_code is STATUS[kind][1]
    assert both.http_status == (200 if begun else STATUS[kind][0])


@pytest.mark.parametrize("begun", [False, True], ids=["before the first message", "after it"])
async def test_a_bug_is_an_internal_error_that_names_only_the_request_id(begun: bool) -> None:
    request = pb.BuildIndexRequest(corpus="c", kind="bug", activate=begun)
    async with serving_retriever(FailingRetriever()) as both:
        answers = [await both.over_grpc(RetrieverStub, "BuildIndex", request), await both.over_http(BUILD, request)]
        unary = pb.SearchRequest(queries=["q"], mode="bug")
        answers += [await both.over_grpc(RetrieverStub, "Search", unary), await both.over_http(SEARCH, unary)]
    for answer in answers:
        assert answer.error == "internal"
        assert answer.message.startswith("internal error; request id ")
        assert "secret" not in answer.message


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_our_client_raises_the_class_that_the_service_raised(kind: ErrorKind) -> None:
    async with (
        serving_retriever(FailingRetriever()) as both,
        RetrieverClient(both.grpc_target, mode=kind.value, retries=ONE_ATTEMPT) as client,
    ):
        with pytest.raises(ServiceError) as caught:
            await client.search(["q"], 3, {})
    assert type(caught.value) is ERROR_BY_KIND.get(kind, ServiceError)
    assert caught.value.kind is kind
    assert caught.value.retry_after_seconds == RETRY_AFTER_SECONDS
    assert str(caught.value) == f"it is {kind.value}, für immer"


@pytest.mark.parametrize("character", ["x", "%", "ü", "字", "🙂"])
async def test_a_message_of_any_length_reaches_the_caller_with_its_end(character: str) -> None:
    """A gRPC status is a header, and a client refuses headers of more than 8 KiB with an error of its own."""
    request = pb.SearchRequest(
        queries=[f"the build failed: {character * 20_000} because the disk is full"], mode="long"
    )
    async with serving_retriever(FailingRetriever()) as both:
        answer = await both.over_grpc(RetrieverStub, "Search", request)
    assert answer.error == "conflict"
    assert answer.message.startswith(f"the build failed: {character}")
    assert answer.message.endswith(f"{character} because the disk is full")


async def test_a_field_that_does_not_exist_is_refused() -> None:
    async with serving_retriever(FailingRetriever()) as both, httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{both.http_url}/v1/search", json={"queries": ["q"], "topk": 3})
        unknown = await client.get(f"{both.http_url}/v1/nothing")
    assert response.status_code == 400
    assert response.json()["error"]["kind"] == "invalid"
    assert "topk" in response.json()["error"]["message"]
    assert (unknown.status_code, unknown.json()["error"]["kind"]) == (404, "not_found")
