"""An HTTP application: the form of its errors, the failures in its OpenAPI document, and its probes."""

import json

import pytest

from searchrl.platform.server.auth import KeyRing
from tests.fakes.served_application import Served
from tests.unit.platform.conftest import KEY


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/other/things", "{}", 400),
        ("POST", "/v1/other/things", "[]", 400),
        ("POST", "/v1/other/things", "{" + " " * 10_001 + "}", 413),
        ("GET", "/v1/other/things", "", 405),
        ("GET", "/v1/other/unknown", "", 404),
    ],
)
async def test_errors_of_a_registered_prefix_have_its_own_form(method: str, path: str, body: str, status: int) -> None:
    async with Served().client() as client:
        answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
        elsewhere = await client.get("/v1/unknown")
    assert answer.status_code == status
    assert answer.json().keys() == {"other", "kind"}
    assert elsewhere.json().keys() == {"error"}


async def test_openapi_names_the_failures_that_are_given(keys: KeyRing) -> None:
    async with Served(keys).client(headers={"authorization": KEY}) as client:
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/runs/{run_id}"]["get"]
    assert operation["responses"].keys() >= {"200", "400", "401", "403", "404", "409", "413", "429", "503", "504"}
    assert "422" not in json.dumps(document)
    assert [(row["name"], row["in"]) for row in operation["parameters"]] == [("run_id", "path")]
    other = document["paths"]["/v1/other/things"]["post"]["responses"]["400"]
    assert other["content"]["application/json"]["schema"]["required"] == ["other", "kind"]
    assert document["paths"]["/livez"]["get"]["security"] == []


async def test_health_is_what_readiness_is() -> None:
    async with Served().client() as client:
        assert (await client.get("/health")).status_code == (await client.get("/readyz")).status_code == 503
