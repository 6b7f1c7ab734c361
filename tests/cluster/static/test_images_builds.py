"""How ``scripts/test_cluster.sh`` builds the images beside other work, with programs that only record their calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "test_cluster.sh"
BUILT = [f"localhost/searchrl/{name}:dev" for name in ("retriever", "generator", "trainer", "evaluator")]

KUBE = """#!/bin/sh
echo "kube $1 $(nice)" >> "$RECORD"
case "$1" in
up) echo "export KUBECONFIG=$RECORD.config" ;;
build)
    for word; do case "$previous" in -t) reference=$word ;; esac; previous=$word; done
    echo "$reference" >> "$RECORD.started"
    [ -z "$ENDLESS" ] || sleep 300
    echo "$reference" >> "$RECORD.built" ;;
esac
"""
BUILDAH = """#!/bin/sh
case "$*" in
*" rmi "*) for last; do :; done; echo "$last" >> "$RECORD.removed" ;;
*) exit 1 ;;
esac
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script is for Linux")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The file of recorded calls; those of ``kube`` with their niceness. Lists of images are beside it."""
    for name, text in {"kube": KUBE, "buildah": BUILDAH, "id": "#!/bin/sh\necho 0\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path / "calls"


def beside(record: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    dropped = ("KUBECONFIG", "KEEP", "SEARCHRL_CLUSTER_TESTS")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    path = f"{record.parent}:{os.environ['PATH']}"
    given = {"PATH": path, "SEARCHRL_KUBE": str(record.parent), "RECORD": str(record), "ENDLESS": ""} | variables
    return subprocess.run(
        [SCRIPT, "--images-beside", *command], env=inherited | given, capture_output=True, text=True, check=False
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_images_are_built_at_low_priority_beside_a_command_and_the_node_ends(record: Path) -> None:
    finished = beside(record, "sh", "-c", f"until [ -e {record}.started ]; do sleep 0.01; done; nice")
    assert finished.returncode == 0, finished.stderr
    own, *built = finished.stdout.splitlines()
    assert own == str(os.nice(0))
    assert next(line.split()[1] for line in built if "/searchrl/" in line) == BUILT[0]
    assert {*BUILT} <= {*lines(Path(f"{record}.built"))} and not Path(f"{record}.removed").exists()
    calls = lines(record)
    assert {call for call in calls if call.startswith("kube build")} == {"kube build 19"}
    assert f"kube up {os.nice(0)}" in calls  # a node that is as slow as the builds would not become ready
    assert calls[-1].startswith("kube down")


def test_a_command_that_fails_ends_the_builds_and_what_was_not_exported_is_built_again(record: Path) -> None:
    finished = beside(record, "sh", "-c", f"until [ -e {record}.started ]; do sleep 0.01; done; exit 3", ENDLESS="1")
    assert finished.returncode == 3
    assert not Path(f"{record}.built").exists()
    assert lines(Path(f"{record}.removed")) == lines(Path(f"{record}.started")) == BUILT[:1]
    assert lines(record)[-1].startswith("kube down")


OWN = {"KUBECONFIG": "own"}


@pytest.mark.parametrize("variables", [{"SEARCHRL_CLUSTER_TESTS": "0"}, OWN, OWN | {"SEARCHRL_CLUSTER_TESTS": "1"}])
def test_nothing_is_built_for_tests_that_are_not_wanted_or_for_ones_own_cluster(record: Path, variables) -> None:
    finished = beside(record, "echo", "tested", **variables)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "tested\n", "")
    assert not record.exists()
