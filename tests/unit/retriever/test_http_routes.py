"""Statuses of ``/retrieve`` for unmodified clients, which repeat a request on 500, 502, 503 and 504 only."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServiceError, TooLarge, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from services.retriever.wiring import service_spec


async def retrieve(error: Exception) -> httpx.Response:
    async def fail(queries: list[str], top_k: int | None) -> None:
        raise error

    service: Any = SimpleNamespace(retrieve=fail)
    app = service_spec(service, KeyRing.from_file(None), Health(), CollectorRegistry()).build_http_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post("/retrieve", json={"queries": ["x"]})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Overloaded("100 queries are waiting", retry_after_seconds=2.4), 503),
        (Unavailable("no index is in service"), 503),
        (DeadlineExceeded("too late"), 504),
        (ServiceError("internal"), 500),
        (RuntimeError("a bug"), 500),
    ],
)
async def test_every_outage_has_a_status_that_clients_repeat(error: Exception, status: int) -> None:
    answer = await retrieve(error)
    assert answer.status_code == status
    assert "result" not in answer.json()


async def test_an_overload_says_when_to_retry() -> None:
    assert (await retrieve(Overloaded("full", retry_after_seconds=2.4))).headers["retry-after"] == "2"


@pytest.mark.parametrize(("error", "status"), [(InvalidRequest("no"), 400), (TooLarge("too many"), 413)])
async def test_an_error_of_the_caller_has_a_status_that_clients_do_not_retry(error: Exception, status: int) -> None:
    assert (await retrieve(error)).status_code == status
