"""The learner, the engine's weights and the encoder on a CUDA GPU; ``make test-gpu``.

Without a GPU everything here is skipped; SEARCHRL_GPU_DRY_RUN=1 runs the same tests on the CPU, to try the tests.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from tests.fakes.tiny_families import write_family
from tests.fakes.train_rows import write_tiny_model
from tests.gpu.wide_rows import WIDE_VOCABULARY

DRY_RUN = os.environ.get("SEARCHRL_GPU_DRY_RUN") == "1"
NO_GPU = "torch sees no CUDA GPU: NOTHING of the GPU paths was tested (SEARCHRL_GPU_DRY_RUN=1: on the CPU)"
LearnerMaker = Callable[..., Learner]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DRY_RUN or torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU; in a dry run the CPU."""
    return "cpu" if DRY_RUN else "cuda"


@pytest.fixture(scope="session", params=["qwen2", "qwen3", "llama"])
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with peaked distributions."""
    return write_family(tmp_path_factory.mktemp("family") / request.param, request.param)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 whose products are large enough for a GPU's own kernels: width 256, four layers; tiny in a dry run."""
    width, layers = (32, 2) if DRY_RUN else (256, 4)
    return write_tiny_model(tmp_path_factory.mktemp("qwen"), vocabulary=WIDE_VOCABULARY, width=width, layers=layers)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels whose sums always have the same order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def learner_on() -> LearnerMaker:
    """Open a learner: ``learner_on(folder, device, **settings)``."""

    def make(folder: Path, device: str, **settings: object) -> Learner:
        return Learner.from_folder(folder, LearnerSettings.model_validate({"device": device, **settings}), 0)

    return make
