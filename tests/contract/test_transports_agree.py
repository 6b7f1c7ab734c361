"""Tests that every rpc of every service has the same result over gRPC and over REST.

The services are the real ones, as processes; each call goes to both transports, and the results are compared.
"""

import asyncio
import copy
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
import httpx
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from searchrl.contracts.v1 import evaluator_pb2, generator_pb2, passage_pb2, question_pb2, retriever_pb2, trainer_pb2
from searchrl.contracts.v1.evaluator_pb2_grpc import EvaluatorStub
from searchrl.contracts.v1.generator_pb2_grpc import GeneratorStub
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverStub
from searchrl.contracts.v1.trainer_pb2_grpc import TrainerStub
from searchrl.platform.server.rest_mirror import Mirror
from tests.contract.harness import Answer, to_json
from tests.contract.small_services import ADMIN_KEY, BEARER, Running, small_services

pytestmark = pytest.mark.slow

# Times and generated names, which correctly differ between two calls.
VOLATILE = frozenset({"seconds", "created", "generation"})


@dataclass(frozen=True)
class Case:
    """One call. ``keep`` reduces the messages to the part that must agree; ``error`` is the expected error kind."""

    method: str
    request: Message
    error: str = ""
    keep: Callable[[list[dict[str, Any]]], Any] = lambda messages: messages


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with small_services(tmp_path_factory.mktemp("services")) as started:
        yield started


def last(messages: list[dict[str, Any]]) -> Any:
    return messages[-1:]


def phases(messages: list[dict[str, Any]]) -> Any:
    return list(dict.fromkeys(message.get("phase") for message in messages))


def retriever_cases(running: Running) -> list[Case]:
    pb = retriever_pb2
    return [
        Case("Search", pb.SearchRequest(queries=["Motors founder", "the"], top_k=2)),
        Case("Search", pb.SearchRequest(queries=["Motors founder"], mode="bm25", filters={"world": "w001"})),
        Case("Search", pb.SearchRequest(queries=["", "Motors"])),
        Case("Search", pb.SearchRequest()),
        Case("Search", pb.SearchRequest(queries=["q"], top_k=100_000), error="invalid"),
        Case("Search", pb.SearchRequest(queries=["q"], mode="nonsense"), error="invalid"),
        Case("GetPassages", pb.GetPassagesRequest(ids=["w000-000001", "nobody", "w000-000000"])),
        Case("ListIndexes", pb.ListIndexesRequest()),
        Case("ActivateIndex", pb.ActivateIndexRequest(generation=running.generation)),
        Case("ActivateIndex", pb.ActivateIndexRequest(generation="none"), error="not_found"),
        Case("BuildIndex", pb.BuildIndexRequest(corpus=str(running.files.corpus), kind="bm25"), keep=phases),
        Case("BuildIndex", pb.BuildIndexRequest(corpus="/no/such/corpus", kind="bm25"), error="invalid"),
        Case("BuildIndex", pb.BuildIndexRequest(corpus=str(running.files.corpus), kind="nonsense"), error="invalid"),
    ]


def generator_cases(running: Running) -> list[Case]:
    pb = generator_pb2
    question = question_pb2.Question(id="1", text="Who founded Catalyst Motors?", filters={"world": "w001"})
    passage = passage_pb2.Passage(id="p", title="Catalyst Motors", text="Catalyst Motors was started by Mateo Ivanova.")
    return [
        Case("ListMethods", pb.ListMethodsRequest()),
        Case("Answer", pb.AnswerRequest(question=question, method="rag", top_k=4)),
        Case("Answer", pb.AnswerRequest(question=question, method="direct", seed=2**40, temperature=0.5)),
        Case("Answer", pb.AnswerRequest(question=question, method="nonsense"), error="invalid"),
        Case("Answer", pb.AnswerRequest(method="rag"), error="invalid"),
        Case("AnswerFromContext", pb.AnswerFromContextRequest(question=question.text, passages=[passage])),
        Case("AnswerFromContext", pb.AnswerFromContextRequest(), error="invalid"),
        Case("Judge", pb.JudgeRequest(question="q", answer="It is Mateo Ivanova.", golden_answers=["Mateo Ivanova"])),
        Case(
            "Judge",
            pb.JudgeRequest(question="q", answer="unknown", golden_answers=["Mateo Ivanova"]),
            keep=lambda messages: messages[0]["decided_by"],  # the second verdict comes from the cache, without tokens
        ),
    ]


def evaluator_cases(running: Running) -> list[Case]:
    pb = evaluator_pb2
    rag = pb.MethodSpec(method="rag", top_k=3, seed=7)
    spec = pb.CreateRunRequest(run_id="r1", questions=str(running.files.test), methods=[rag], limit=2)
    nothing = pb.CreateRunRequest(run_id="r2", questions="/no/such/file", methods=[rag])
    return [
        Case("CreateRun", spec, keep=lambda messages: messages[0]["run_id"]),
        Case("WatchRun", pb.WatchRunRequest(run_id="r1"), keep=last),
        Case("CreateRun", spec),
        Case("CreateRun", nothing, error="not_found"),
        Case("GetRun", pb.GetRunRequest(run_id="r1")),
        Case("GetRun", pb.GetRunRequest(run_id="none"), error="not_found"),
        Case("WatchRun", pb.WatchRunRequest(run_id="none"), error="not_found"),
        Case("ListRuns", pb.ListRunsRequest()),
    ]


def trainer_cases(running: Running) -> list[Case]:
    pb = trainer_pb2

    def standing(messages: list[dict[str, Any]]) -> Any:
        return [(message["run_id"], message["total_steps"]) for message in messages]

    def fields(messages: list[dict[str, Any]]) -> Any:
        return [sorted(message) for message in messages]

    return [
        Case("GetStatus", pb.GetStatusRequest(), keep=standing),
        Case("SaveCheckpoint", pb.SaveCheckpointRequest(), keep=fields),
        Case("Pause", pb.PauseRequest(), keep=standing),
        Case("Resume", pb.ResumeRequest(), keep=standing),
        Case("GetMetrics", pb.GetMetricsRequest(since_step=10_000)),
        Case("Stop", pb.StopRequest(), keep=standing),
    ]


SERVICES = {
    "retriever": (retriever_pb2, RetrieverStub, retriever_cases),
    "generator": (generator_pb2, GeneratorStub, generator_cases),
    "evaluator": (evaluator_pb2, EvaluatorStub, evaluator_cases),
    "trainer": (trainer_pb2, TrainerStub, trainer_cases),
}
# REST returns a report as the page itself; a separate test compares it.
WITHOUT_MIRROR = {"GetReport"}


def mirrors_of(service: str) -> dict[str, Mirror]:
    routes = importlib.import_module(f"services.{service}.http_routes")
    return {mirror.method: mirror for mirror in routes.MIRRORS}


def descriptor_of(service: str) -> ServiceDescriptor:
    return SERVICES[service][0].DESCRIPTOR.services_by_name[service.capitalize()]


def settled(value: Any) -> Any:
    """Return the value without fields that may differ between two calls."""
    if isinstance(value, dict):
        return {name: settled(part) for name, part in value.items() if name not in VOLATILE}
    return [settled(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("service", SERVICES)
def test_every_rpc_has_a_rest_route_with_the_same_messages(service: str) -> None:
    mirrors = mirrors_of(service)
    methods = {method.name: method for method in descriptor_of(service).methods}
    assert mirrors.keys() | WITHOUT_MIRROR >= methods.keys() >= mirrors.keys()
    for name, mirror in mirrors.items():
        assert mirror.request.DESCRIPTOR is methods[name].input_type, name
        assert mirror.response.DESCRIPTOR is methods[name].output_type, name
        assert mirror.streaming == methods[name].server_streaming, name


def comparable(answer: Answer, case: Case) -> Answer:
    return replace(answer, messages=settled(case.keep(answer.messages) if answer.messages else []))


def without_chart_ids(page: bytes) -> bytes:
    """Remove the numbers from the ids of charts: they count up in each process, so that ids on a page are unique."""
    return re.sub(rb"c\d+-", b"c-", page)


@pytest.mark.parametrize("format", ["html", "json"])
async def test_a_report_is_the_same_page_over_both(running: Running, format: str) -> None:
    both = running.targets["evaluator"]
    pb = evaluator_pb2
    spec = pb.CreateRunRequest(
        run_id=f"report-{format}", questions=str(running.files.test), methods=[pb.MethodSpec(method="direct")], limit=1
    )
    metadata = tuple(BEARER.items())
    async with grpc.aio.insecure_channel(both.grpc_target) as channel:
        stub = EvaluatorStub(channel)
        await stub.CreateRun(spec, metadata=metadata)
        async for _ in stub.WatchRun(pb.WatchRunRequest(run_id=spec.run_id), metadata=metadata):
            pass
        by_grpc = await stub.GetReport(pb.GetReportRequest(run_id=spec.run_id, format=format), metadata=metadata)
    async with httpx.AsyncClient(trust_env=False, headers=BEARER) as client:
        path = f"{both.http_url}/v1/runs/{spec.run_id}/report"
        by_http = await client.get(path, params={"format": format})
        missing = await client.get(f"{both.http_url}/v1/runs/none/report")
        nonsense = await client.get(path, params={"format": "nonsense"})
    assert without_chart_ids(by_grpc.content) == without_chart_ids(by_http.content)
    assert (missing.status_code, nonsense.status_code) == (404, 400)


@pytest.mark.parametrize("service", SERVICES)
async def test_every_route_is_described_in_openapi(running: Running, service: str) -> None:
    both = running.targets[service]
    async with httpx.AsyncClient(trust_env=False, headers=BEARER) as client:
        described = (await client.get(f"{both.http_url}/openapi.json")).json()["paths"]
    for mirror in mirrors_of(service).values():
        operation = described[mirror.path][mirror.verb.lower()]
        declared = {row["name"] for row in operation.get("parameters", ()) if row["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", mirror.path))
        assert operation["responses"].keys() >= {"200", "400", "401", "403", "404", "413", "429", "503", "504"}
        assert "422" not in operation["responses"]


def test_answers_that_differ_compare_as_different() -> None:
    case = Case("Search", retriever_pb2.SearchRequest())
    one, other = Answer([{"queries": [{"score": 1.0}]}]), Answer([{"queries": [{"score": 2.0}]}])
    assert comparable(one, case) != comparable(other, case)
    assert comparable(Answer([{"seconds": 1.0}]), case) == comparable(Answer([{"seconds": 2.0}]), case)


async def test_a_call_whose_fields_are_all_in_its_path_needs_no_body(running: Running) -> None:
    both = running.targets["retriever"]
    async with httpx.AsyncClient(trust_env=False, headers=BEARER) as client:
        answer = await client.post(f"{both.http_url}/v1/admin/indexes/{running.generation}/activate")
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("service", SERVICES)
async def test_reflection_and_health_answer(running: Running, service: str) -> None:
    both = running.targets[service]
    async with grpc.aio.insecure_channel(both.grpc_target) as channel:
        name = descriptor_of(service).full_name
        state = await cast(Any, health_pb2_grpc.HealthStub(channel)).Check(health_pb2.HealthCheckRequest(service=name))
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = cast(Any, reflection_pb2_grpc.ServerReflectionStub)(channel).ServerReflectionInfo(
            iter([request]), metadata=(("authorization", f"Bearer {ADMIN_KEY}"),)
        )
        listed = [entry.name async for reply in reflection for entry in reply.list_services_response.service]
    assert state.status == health_pb2.HealthCheckResponse.SERVING
    assert name in listed


async def test_reflection_needs_a_key_as_every_call_does(running: Running) -> None:
    async with grpc.aio.insecure_channel(running.targets["retriever"].grpc_target) as channel:
        # Without a request: the server refuses the call itself, and a request that is still being sent to a call that
        # has ended fails in the client with INTERNAL.
        call = cast(Any, reflection_pb2_grpc.ServerReflectionStub)(channel).ServerReflectionInfo()
        assert await asyncio.wait_for(call.code(), 10) == grpc.StatusCode.UNAUTHENTICATED


# Must be the last test of this file: the last case of the trainer stops it.
@pytest.mark.parametrize("service", SERVICES)
async def test_every_rpc_gives_the_same_over_both_transports(running: Running, service: str) -> None:
    _, stub, cases_of = SERVICES[service]
    cases = cases_of(running)
    assert {case.method for case in cases} == mirrors_of(service).keys()
    both = running.targets[service]
    for case in cases:
        by_grpc = await both.over_grpc(stub, case.method, copy.deepcopy(case.request))
        by_http = await both.over_http(mirrors_of(service)[case.method], case.request)
        what = f"{case.method} {to_json(case.request)}"
        assert comparable(by_grpc, case) == comparable(by_http, case), what
        assert by_grpc.error == case.error, f"{what}: {by_grpc.message}"
