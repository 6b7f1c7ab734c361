"""Requests of the documentation have routes, rpcs and messages of the services."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple
from unittest.mock import Mock

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from google.protobuf import descriptor_pool, json_format, message_factory

from searchrl.contracts.v1 import evaluator_pb2, generator_pb2, retriever_pb2, trainer_pb2
from searchrl.errors import ErrorKind
from searchrl.platform.server.rest_mirror import Mirror
from searchrl.platform.status_map import STATUS
from services.evaluator import http_routes as evaluator
from services.generator import http_routes as generator
from services.generator.http_routes import openai_router
from services.generator.openai_api.chat_request import ChatRequest
from services.policy_server import http_routes as policy_server
from services.retriever import http_routes as retriever
from services.trainer import http_routes as trainer
from tests.unit.docs.documented_commands import ROOT, Command, commands, inline_code, name_of, pages

CONTRACTS = (evaluator_pb2, generator_pb2, retriever_pb2, trainer_pb2)
WITH_RPCS = (retriever, generator, trainer, evaluator)
OF_EVERY_SERVICE = {("GET", path) for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json")}
ROUTE = re.compile(r"(GET|POST|PUT|DELETE|PATCH) (/[^ ?]*)(?:\?(\S+))?")
CALL = re.compile(r"(searchrl\.contracts\.v1\.\w+)/(\w+)")


class Request(NamedTuple):
    """One call of curl."""

    page: str
    verb: str
    path: str
    body: str


def routers() -> Iterator[APIRouter]:
    """The routers of all services. Their services are mocks, because no route is called."""
    yield from (module.rest_router(Mock()) for module in WITH_RPCS)
    yield retriever.retrieve_router(Mock())
    yield evaluator.page_router(Mock())
    yield openai_router(Mock())
    yield policy_server.completions_router(Mock(), Mock(), "model")


@cache
def routes() -> tuple[APIRoute, ...]:
    return tuple(route for router in routers() for route in router.routes if isinstance(route, APIRoute))


def route_of(verb: str, path: str) -> APIRoute | None:
    """The route that answers a request; a placeholder such as ``{run_id}`` stands for itself."""
    return next((one for one in routes() if verb in (one.methods or ()) and one.path_regex.fullmatch(path)), None)


@cache
def mirrors() -> Mapping[tuple[str, str], Mirror]:
    return {(mirror.verb, mirror.path): mirror for module in WITH_RPCS for mirror in module.MIRRORS}


def requests() -> list[Request]:
    return [request_of(command) for command in commands() if command.program == "curl"]


def request_of(command: Command) -> Request:
    (url,) = [word for word in command.words if re.search(r"^(https?://)?[\w.]+:\d+/|^(https?://)[\w.]+/", word)]
    bodies = command.values_of("-d", "--data")
    verb = (command.values_of("-X", "--request") or ["POST" if bodies else "GET"])[0]
    return Request(command.page, verb, "/" + url.partition("://")[2 if "://" in url else 0].partition("/")[2], *bodies)


@pytest.mark.parametrize("request_", requests(), ids=lambda one: f"{one.page}: {one.verb} {one.path}")
def test_a_request_has_a_route_that_takes_its_body(request_: Request) -> None:
    route = route_of(request_.verb, request_.path)
    assert route is not None, f"{request_.page}: no service answers {request_.verb} {request_.path}"
    body = json.loads(request_.body)
    mirror = mirrors().get((request_.verb, route.path))
    if mirror is not None:
        json_format.ParseDict(body, mirror.request())
    elif route.path == "/retrieve":
        retriever.RetrieveBody.model_validate(body)
        assert set(body) <= set(retriever.RetrieveBody.model_fields)
    else:
        assert route.path == "/v1/chat/completions", f"{request_.page}: the body of {route.path} is not checked"
        chat = ChatRequest.model_validate(body)
        assert not chat.model_extra and chat.messages


def test_there_are_requests_to_check() -> None:
    assert {one.path for one in requests()} >= {"/retrieve", "/v1/search", "/v1/answer", "/v1/chat/completions"}


def named_routes() -> Iterator[tuple[str, str, str, str]]:
    """Page, verb, path and query of each route in running text; ``{a,b}`` stands for several."""
    for page in pages():
        for code in inline_code(page):
            if found := ROUTE.fullmatch(code.replace("\\|", "|")):
                for path in _expand(found[2]):
                    yield name_of(page), found[1], path, found[3] or ""


def _expand(path: str) -> list[str]:
    alternatives = re.search(r"\{(\w+(?:,\w+)+)\}", path)
    if not alternatives:
        return [path]
    return [path.replace(alternatives[0], one) for one in alternatives[1].split(",")]


@pytest.mark.parametrize(("page", "verb", "path", "query"), sorted(set(named_routes())))
def test_a_route_in_the_text_exists(page: str, verb: str, path: str, query: str) -> None:
    if (verb, path) in OF_EVERY_SERVICE:
        return
    route = route_of(verb, path)
    assert route is not None, f"{page}: {verb} {path}"
    mirror = mirrors().get((verb, route.path))
    names = {field.name for field in mirror.request.DESCRIPTOR.fields} if mirror else parameters_of(route)
    assert {part.partition("=")[0] for part in query.split("&") if part} <= names, f"{page}: {query}"


def parameters_of(route: APIRoute) -> set[str]:
    return set(inspect.signature(route.endpoint).parameters)


def grpc_calls() -> Iterator[tuple[str, str, str, str]]:
    """Page, service, rpc and body of each call of grpcurl, and of each rpc that the text names."""
    for command in commands():
        if command.program == "grpcurl":
            service, rpc = command.words[-1].split("/")
            yield command.page, service, rpc, command.values_of("-d")[0]
    for page in pages():
        yield from ((name_of(page), service, rpc, "{}") for service, rpc in CALL.findall(" ".join(inline_code(page))))


@pytest.mark.parametrize(("page", "service", "rpc", "body"), sorted(set(grpc_calls())))
def test_an_rpc_exists_and_takes_the_message(page: str, service: str, rpc: str, body: str) -> None:
    method = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(rpc)
    json_format.Parse(body, message_factory.GetMessageClass(method.input_type)())


def test_grpcurl_is_called() -> None:
    assert any(body != "{}" for _, _, _, body in grpc_calls())


def test_the_table_of_errors_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "integration.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\d{3}) \| ([A-Z_]+) \|", text, re.MULTILINE)
    expected = {(kind.value, str(status), code.name) for kind, (status, code) in STATUS.items()}
    assert set(rows) == expected and len(rows) == len(ErrorKind)
