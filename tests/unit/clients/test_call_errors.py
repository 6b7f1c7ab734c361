"""Every kind of failure of a call is raised as its own class."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from searchrl.clients.call_errors import from_grpc, from_http
from searchrl.errors import (
    ERROR_BY_KIND,
    OUTAGE_KINDS,
    PERMANENT_KINDS,
    ErrorKind,
    Overloaded,
    ServiceError,
    TooLarge,
    Unavailable,
)
from searchrl.platform.status_map import STATUS


def rpc_error(code: grpc.StatusCode, details: str = "why", *trailing: tuple[str, str]) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailing), details)


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_the_kind_in_the_trailing_metadata_wins_over_the_code(kind: ErrorKind) -> None:
    error = from_grpc(rpc_error(grpc.StatusCode.UNKNOWN, "why", ("searchrl-error-kind", kind.value)), "host:1")
    assert type(error) is ERROR_BY_KIND.get(kind, ServiceError)
    assert error.kind is kind
    assert str(error) == "why"


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_without_metadata_the_code_decides(kind: ErrorKind) -> None:
    assert from_grpc(rpc_error(STATUS[kind][1]), "host:1").kind is kind


def test_retry_after_is_read_from_the_metadata() -> None:
    trailing = (("searchrl-error-kind", "overloaded"), ("retry-after", "2.5"))
    error = from_grpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *trailing), "host:1")
    assert isinstance(error, Overloaded)
    assert error.retry_after_seconds == 2.5


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_a_nonsense_retry_after_is_ignored(text: str) -> None:
    assert from_http(503, {"retry-after": text}, "", "http://x").retry_after_seconds is None


def test_a_message_over_the_size_limit_is_no_overload() -> None:
    details = "CLIENT: Received message larger than max (70000000 vs. 67108864)"
    assert isinstance(from_grpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, details), "host:1"), TooLarge)


def test_a_call_cancelled_by_the_server_can_be_tried_again() -> None:
    assert isinstance(from_grpc(rpc_error(grpc.StatusCode.CANCELLED), "host:1"), Unavailable)


def test_a_transport_failure_names_the_target() -> None:
    assert "host:1" in str(from_grpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused"), "host:1"))


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_http_statuses_map_back_to_kinds(kind: ErrorKind) -> None:
    assert from_http(STATUS[kind][0], {}, "why", "http://x").kind is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [(422, ErrorKind.INVALID), (502, ErrorKind.UNAVAILABLE), (408, ErrorKind.DEADLINE)],
)
def test_statuses_that_only_other_servers_send_are_understood(status: int, kind: ErrorKind) -> None:
    assert from_http(status, {}, "", "http://x").kind is kind


@pytest.mark.parametrize("status", [402, 405, 410, 415, 418, 421, 428, 431, 451, 301])
def test_other_refusals_of_a_server_are_permanent(status: int) -> None:
    assert from_http(status, {}, "", "http://x").kind in PERMANENT_KINDS


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 524, 529, 408, 425, 429])
def test_failures_of_a_server_or_its_proxy_are_outages(status: int) -> None:
    assert from_http(status, {}, "", "http://x").kind in OUTAGE_KINDS


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_grpc_code_is_an_outage_or_permanent(code: grpc.StatusCode) -> None:
    outages = {
        "UNKNOWN",
        "INTERNAL",
        "DATA_LOSS",
        "UNAVAILABLE",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "CANCELLED",
    }
    assert (from_grpc(rpc_error(code), "host:1").kind in OUTAGE_KINDS) == (code.name in outages)


def test_every_kind_is_an_outage_or_permanent() -> None:
    assert set(ErrorKind) == OUTAGE_KINDS | PERMANENT_KINDS
    assert not OUTAGE_KINDS & PERMANENT_KINDS
