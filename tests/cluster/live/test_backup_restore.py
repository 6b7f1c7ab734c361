"""The documented commands for backup and restore in docs/operations/upgrades.md rebuild a release elsewhere."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.live.conftest import ROOT, Release, forwarded
from tests.cluster.live.releases import await_that, new_namespace

PAGE = ROOT / "docs" / "operations" / "upgrades.md"
QUESTIONS = "/data/questions/small-world/test.jsonl"
RUN = {"run_id": "kept", "questions": QUESTIONS, "methods": [{"method": "direct"}], "limit": 2}
pytestmark = pytest.mark.timeout(400)


def test_a_release_is_restored_with_its_index_and_its_results(installed_release: Release, tmp_path: Path) -> None:
    with forwarded(installed_release, f"{installed_release.name}-evaluator", 8080) as port:
        httpx.post(f"http://127.0.0.1:{port}/v1/runs", json=RUN, timeout=30).raise_for_status()
        await_that(lambda: run_of(port)["state"] == "finished", 60, "the evaluation is over")
    with new_namespace() as namespace:
        documented("Back up", installed_release, namespace, tmp_path)
        documented("Restore into a new release", installed_release, namespace, tmp_path)
        restored = Release("searchrl", namespace)
        with forwarded(restored, "searchrl-evaluator", 8080) as port:
            assert run_of(port)["methods"][0]["done"] == 2
        assert current_index(restored) == current_index(installed_release)


def documented(section: str, saved: Release, namespace: str, folder: Path) -> None:
    """Run a section's commands with the documented names replaced by those of the test."""
    text = PAGE.read_text().split(f"## {section}\n")[1]
    found = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert found
    script = found[1].replace("-n searchrl", f"-n {saved.namespace}").replace("-n restored", f"-n {namespace}")
    script = script.replace("deployment/searchrl-", f"deployment/{saved.name}-")
    script = script.replace("helm get values searchrl", f"helm get values {saved.name}").replace(
        "deploy/", f"{ROOT}/deploy/"
    )
    # The namespace exists, this release has no keys, and `helm test` is covered elsewhere.
    left_out = ("kubectl create namespace", "kubectl get secret", "helm test")
    lines = [line for line in script.splitlines() if not line.startswith(left_out)]
    assert len(lines) >= 4, section
    environment = {**os.environ, "HELM_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def run_of(port: int) -> dict[str, Any]:
    return httpx.get(f"http://127.0.0.1:{port}/v1/runs/kept", timeout=30).raise_for_status().json()


def current_index(release: Release) -> str:
    return release.kubectl(
        "exec", f"deployment/{release.name}-retriever", "--", "cat", "/data/indexes/small-world/current"
    )
