"""The README's commands for a corpus of one's own run as printed, from the repository's root as the README says."""

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

pytestmark = pytest.mark.slow

SECONDS = 300  # the services start in half a minute; the margin is for a busy machine
# `make up` would first bring .venv up to date; the tests run in an environment of their own. Without grpcurl its call
# is left out: tests/unit/docs/test_requests.py checks it.
PRELUDE = """
set -euo pipefail
make() { eval "$PROGRAM $1 ${2#ARGS=}"; }
command -v grpcurl > /dev/null || grpcurl() { :; }
trap '$PROGRAM down > /dev/null' EXIT
"""


def readme_script() -> str:
    (script,) = re.findall(
        r"^## Use your own corpus\n```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    return script


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="NO CURL: the README's requests are not sent")
def test_the_commands_for_your_own_corpus_work(tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    program = f"{sys.executable} -m searchrl.cli.main"
    script = readme_script().replace(".venv/bin/searchrl", program)
    # The README's ports may be in use on this machine.
    for port in ("8001", "9001"):
        assert script.count(port) == 2
        script = script.replace(port, str(free_port()))
    environment = os.environ | {"PROGRAM": program, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", PRELUDE + script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (answer,) = re.findall(r'\{"result":.*\}', done.stdout)
    rows = json.loads(answer)["result"][0]
    assert len(rows) == 3 and "Kony Ealy" in rows[0]["document"]["contents"] + rows[1]["document"]["contents"]
    (recall,) = re.findall(r"\((\.\d+) for `rag` on this sample\)", (ROOT / "README.md").read_text())
    text = re.sub(r"<[^>]+>|\s+", " ", (tmp_path / "report.html").read_text())
    measures = re.search(r" rag ( *[\d.–]+){12}", text)
    assert measures and f" {float(recall):.1%} ".replace("%", "") in measures[0], text[:2000]
    status = subprocess.run(
        [*program.split(), "status"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert status.returncode != 0, "searchrl down left services running"
