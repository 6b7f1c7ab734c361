"""What a served model reports about itself: the step it was trained to, and whether it is ready."""

from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.http_app import build_http_app
from searchrl.storage.artifact_manifest import Artifact, write_artifact
from services.policy_server.http_routes import completions_router
from services.policy_server.wiring import trained_steps


def test_the_version_is_the_step_that_the_model_was_published_at(tmp_path: Path) -> None:
    write_artifact(tmp_path, Artifact("model", metadata={"step": 60}))
    assert trained_steps(tmp_path) == 60


def test_a_model_without_a_training_step_has_version_0(tmp_path: Path) -> None:
    assert trained_steps(tmp_path) == 0
    write_artifact(tmp_path, Artifact("model"))
    assert trained_steps(tmp_path) == 0


async def test_every_probe_says_whether_the_engine_is_ready() -> None:
    engine: Any = object()  # no probe calls it: its state is in the health of the process
    health = Health()
    router = completions_router(engine, engine, "tiny")
    app = build_http_app(
        "SearchRL policy server", [router], keys=KeyRing(), health=health, registry=CollectorRegistry()
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def probes() -> list[int]:
            return [(await client.get(path)).status_code for path in ("/health", "/readyz", "/livez")]

        assert await probes() == [503, 503, 200]
        health.set_ready()
        assert await probes() == [200, 200, 200]
        health.set_dead("the engine thread has ended")
        assert await probes() == [503, 503, 503]
        assert (await client.get("/health")).json() == {"status": "the engine thread has ended"}
