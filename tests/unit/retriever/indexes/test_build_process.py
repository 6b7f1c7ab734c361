"""The reports of a build process to the service that started it."""

from pathlib import Path

import pytest

from searchrl.errors import ServiceError
from services.retriever.indexes import build_process
from services.retriever.indexes.build_process import BuildStep, IndexBuild, run_build

DONE, TOTAL = 3 << 30, 14_000_000_000  # bytes; neither fits into a signed 32-bit number


async def test_progress_beyond_two_gibibytes_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "large_build.py"
    line = f'{{"phase":"read","done":{DONE},"total":{TOTAL}}}'
    program.write_text(f"import sys\nsys.stderr.write({line!r} + chr(10))\nprint('g1')\n")
    monkeypatch.setattr(build_process, "_COMMAND", "large_build")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    steps = [step async for step in run_build(tmp_path, IndexBuild(tmp_path / "corpus.jsonl", "bm25"))]
    assert steps == [BuildStep("read", DONE, TOTAL), BuildStep("done", 1, 1, "g1")]


async def test_a_killed_build_process_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killed_build.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(build_process, "_COMMAND", "killed_build")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ServiceError, match=r"was killed \(SIGKILL\); its files are removed"):
        _ = [step async for step in run_build(tmp_path, IndexBuild(tmp_path / "corpus.jsonl", "bm25"))]
