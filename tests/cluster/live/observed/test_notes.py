"""Every command that the installation prints works exactly as printed."""

import json
import re
import socket
import subprocess

import pytest

from tests.cluster.live.conftest import ROOT
from tests.cluster.live.observed.conftest import KEY, Observed

pytestmark = pytest.mark.timeout(600)

FORWARD = re.compile(r"port-forward \S+ (.*)$")


def commands(notes: str) -> list[str]:
    """The commands of the notes: the lines that begin with a prompt."""
    return re.findall(r"^  \$ (.*)$", notes, re.MULTILINE)


def script(lines: list[str]) -> str:
    """One shell script for all lines, as a user types them; a port-forward runs in the background once it listens."""
    parts = ["set -eu", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, line in enumerate(lines):
        parts.append(f"echo; echo '=== {number}'")
        if FORWARD.search(line):
            parts += [f"{line} >/dev/null &"]
            parts += [
                f"for _ in $(seq 100); do (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.2; done"
                for port in local_ports(line)
            ]
        else:
            parts.append(line)
    return "\n".join([*parts, "echo; echo '=== KEY'; echo \"$KEY\"", ""])


def local_ports(line: str) -> list[int]:
    """The local ports that a port-forward opens."""
    found = FORWARD.search(line)
    return [int(pair.split(":")[0]) for pair in found.group(1).split()] if found else []


@pytest.fixture(scope="module")
def printed_outputs(observed_release: Observed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each command and what it printed."""
    lines = commands(observed_release.notes)
    for port in [port for line in lines for port in local_ports(line)]:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)), f"port {port} of this machine is in use"
    path = tmp_path_factory.mktemp("notes") / "notes.sh"
    path.write_text(script(lines))
    done = subprocess.run(["bash", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.split(r"^=== (\S+)$", done.stdout, flags=re.MULTILINE)[1:]
    texts = dict(zip(printed[::2], printed[1::2], strict=True))
    return {line: texts[str(number)] for number, line in enumerate(lines)} | {"KEY": texts["KEY"]}


def printed_by(outputs: dict[str, str], word: str) -> str:
    (found,) = (text for line, text in outputs.items() if word in line)
    return found.strip()


def test_every_command_was_run(observed_release: Observed, printed_outputs: dict[str, str]) -> None:
    assert len(printed_outputs) == len(commands(observed_release.notes)) + 1 == 8
    assert sum("port-forward" in line for line in printed_outputs) == 2


def test_the_key_is_the_releases(printed_outputs: dict[str, str]) -> None:
    assert printed_outputs["KEY"].strip() == KEY


def test_the_methods_are_listed(printed_outputs: dict[str, str]) -> None:
    assert {"rag", "s3"} <= set(json.loads(printed_by(printed_outputs, "/v1/methods"))["methods"])


def test_the_question_is_answered(printed_outputs: dict[str, str]) -> None:
    reply = json.loads(printed_by(printed_outputs, "/v1/chat/completions"))
    assert reply["choices"][0]["message"]["content"] and reply["model"].startswith("searchrl/")


def test_the_release_tests_itself(printed_outputs: dict[str, str]) -> None:
    assert "Succeeded" in printed_by(printed_outputs, "helm --namespace")
