"""Commands of the READMEs that start services run as printed, with other ports and folders."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.docs.documented_commands import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="NO CURL: the READMEs' requests are not sent"),
]

SECONDS = 300  # the services start in half a minute; the margin is for a busy machine
# `make up` would first bring .venv up to date; the tests run in an environment of their own. Without grpcurl its call
# is left out: tests/unit/docs/test_requests.py checks it.
PRELUDE = """
set -euo pipefail
make() { eval "$PROGRAM $1 ${2#ARGS=}"; }
command -v grpcurl > /dev/null || grpcurl() { :; }
trap '$PROGRAM down > /dev/null' EXIT
"""


def script_of(page: str, heading: str) -> str:
    """The first script below a heading."""
    (script,) = re.findall(rf"^## {heading}\n+```\w+\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return script


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder from which the repository's data can be reached by its path."""
    (folder / "tests").symlink_to(ROOT / "tests")
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_commands_for_your_own_corpus_work(tmp_path: Path) -> None:
    program = f"{sys.executable} -m searchrl.cli.main"
    script = script_of("README.md", "Use your own corpus").replace(".venv/bin/searchrl", program)
    # The README's ports may be in use on this machine.
    for port in ("8001", "9001"):
        assert script.count(port) == 2
        script = script.replace(port, str(free_port()))
    done = run(PRELUDE + script, tmp_path, PROGRAM=program)
    assert done.returncode == 0, done.stdout + done.stderr
    (answer,) = re.findall(r'\{"result":.*\}', done.stdout)
    rows = json.loads(answer)["result"][0]
    assert len(rows) == 3 and "Kony Ealy" in rows[0]["document"]["contents"] + rows[1]["document"]["contents"]
    (recall,) = re.findall(r"\((\.\d+) for `rag` on this sample\)", (ROOT / "README.md").read_text())
    text = re.sub(r"<[^>]+>|\s+", " ", (tmp_path / "report.html").read_text())
    measures = re.search(r" rag ( *[\d.–]+){12}", text)
    assert measures and f" {float(recall):.1%} ".replace("%", "") in measures[0], text[:2000]
    status = subprocess.run([*program.split(), "status"], cwd=tmp_path, capture_output=True, check=False)
    assert status.returncode != 0, "searchrl down left services running"


def test_the_retriever_runs_alone(tmp_path: Path) -> None:
    script, port = script_of("services/retriever/README.md", "Run"), free_port()
    assert script.count("/tmp/squad") == 2 and script.count("localhost:8080") == 1
    script = script.replace("/tmp/squad", str(tmp_path / "squad")).replace("localhost:8080", f"localhost:{port}")
    script = re.sub(r"^python", sys.executable, script, flags=re.MULTILINE)
    # The service runs until it is stopped: it goes to the background, and the request waits for it.
    script, count = re.subn(
        r"^(RETRIEVER_INDEX_DIR=\S+) python (.*)$", rf"\1 {sys.executable} \2 &", script, flags=re.M
    )
    assert count == 1
    retries = "--retry 100 --retry-all-errors --retry-max-time 120 --retry-delay 1 --output answer.json"
    script = script.replace("curl -s", f"curl -s {retries}")
    prelude = "set -euo pipefail\ntrap 'kill $!; wait $! || true' EXIT\n"
    ports = {"RETRIEVER_LISTEN__HTTP_PORT": str(port), "RETRIEVER_LISTEN__GRPC_PORT": "0"}
    done = run(prelude + script, tmp_path, **ports)
    assert done.returncode == 0, done.stdout + done.stderr
    (query,) = json.loads((tmp_path / "answer.json").read_text())["queries"]
    assert "Jared Allen" in query["results"][0]["passage"]["text"]
