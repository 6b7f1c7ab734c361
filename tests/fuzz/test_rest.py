"""Random requests to every REST route of the four services, made from their own OpenAPI documents.

``make fuzz-rest`` sends thousands; FUZZ_EXAMPLES is how many of them each route gets beside the edge cases.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.small_services import ADMIN_KEY, BEARER, Running, small_services

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
SEED = os.environ.get("FUZZ_SEED", "1")
SERVICES = ("retriever", "generator", "evaluator", "trainer")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# An honest refusal is no failure of the server: not ready, overloaded, or its deadline passed. Never a 500.
# The trainer's checkpoints take seconds each, and its stop ends the process.
CONFIG = f"""
[generation]
max-examples = {EXAMPLES}

[[operations]]
include-operation-id = "SaveCheckpoint"
generation.max-examples = 2
phases.coverage.enabled = false

[[operations]]
include-operation-id = "Stop"
enabled = false

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with small_services(tmp_path_factory.mktemp("services")) as started:
        httpx.post(f"{started.targets['trainer'].http_url}/v1/admin/pause", headers=BEARER, trust_env=False)
        yield started


def requests_by_outcome(url: str) -> dict[str, int]:
    """What the service itself counted."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    found: dict[str, int] = {}
    for labels, value in re.findall(r"^searchrl_requests_total{(.*)} (\S+)$", text, re.M):
        if 'transport="http"' in labels:
            outcome = re.search(r'outcome="(\w+)"', labels)
            assert outcome is not None
            found[outcome[1]] = found.get(outcome[1], 0) + int(float(value))
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_no_request_makes_a_service_fail_or_answer_what_it_does_not_document(
    service: str, running: Running, tmp_path: Path
) -> None:
    url = running.targets[service].http_url
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config),
        "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {ADMIN_KEY}", "-c", CHECKS,
        "--seed", SEED, "--phases", "examples,coverage,fuzzing", "--no-shrink",
        "--continue-on-failure", "--request-timeout", "60",
        "--suppress-health-check", "all", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    counted = requests_by_outcome(url)
    sys.stdout.write(f"{service}: {sum(counted.values())} requests, by outcome {counted}\n")
    assert "internal" not in counted
    assert sum(counted.values()) > 50
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
