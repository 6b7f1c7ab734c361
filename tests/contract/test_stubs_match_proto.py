"""Tests that the checked-in stubs equal those generated from the protos."""

from pathlib import Path

import grpc_tools
import pytest
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
PROTO_FILES = sorted(PROTO.rglob("*.proto"))
STUBS = ROOT / "searchrl" / "contracts" / "v1"
WELL_KNOWN_TYPES = Path(grpc_tools.__file__).parent / "_proto"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    flags = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PROTO}", f"-I{WELL_KNOWN_TYPES}", *flags, *map(str, PROTO_FILES)])
    assert code == 0
    return out / "searchrl" / "contracts" / "v1"


def test_every_proto_has_its_three_stubs_and_no_stub_is_left_over(generated: Path) -> None:
    def stubs(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir() if "_pb2" in path.name}

    assert stubs(STUBS) == stubs(generated)
    assert len(stubs(STUBS)) == 3 * len(PROTO_FILES)


@pytest.mark.parametrize("proto", PROTO_FILES, ids=lambda path: path.stem)
def test_the_stubs_are_what_the_proto_generates(generated: Path, proto: Path) -> None:
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
        name = proto.stem + suffix
        assert (STUBS / name).read_text() == (generated / name).read_text(), f"{name} is stale: run 'make proto'"
