"""The tiny model folder that all tests of the learner share."""

from pathlib import Path

import pytest

from tests.fakes.train_rows import write_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))
