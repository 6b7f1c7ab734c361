"""Tokens, masks, loss and gradient of rows of public formats equal those of TRL's SFTTrainer.

``tests/golden/write_trl_sft.py`` ran that trainer.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchrl.datasets.row import Row
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.algorithms.sft import SftRun, SftSettings, TokenDemonstration
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.sft.chat_rows import read_row
from services.trainer.sft.token_rows import tokenize_row
from tests.golden.write_trl_sft import CASES, write_marked_model

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[3] / "golden" / "trl_sft.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_marked_model(tmp_path_factory.mktemp("marked") / "model")


def tokenize(model: Path, case: str) -> list[TokenDemonstration]:
    tokenizer = ModelTokenizer.from_folder(model)
    return [tokenize_row(read_row(Row(row)), tokenizer) for row in GOLDEN["cases"][case]["rows"]]


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_masks_are_those_of_trl(model: Path, case: str) -> None:
    expected = GOLDEN["cases"][case]
    for row, ids, mask in zip(tokenize(model, case), expected["input_ids"], expected["masks"], strict=True):
        length = len(row.token_ids)
        assert np.asarray(row.token_ids).tolist() == ids[:length]
        assert np.asarray(row.action_mask).tolist() == mask[:length]
        assert not any(mask[length:])  # TRL keeps what follows the last trained token, and gives it no loss


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(model: Path, case: str, packed: bool) -> None:
    rows = tokenize(model, case)
    learner = Learner.from_folder(model, LearnerSettings(packed=packed), 0)
    report = SftRun(learner, rows, SftSettings(batch_rows=len(rows))).run(1)
    assert report is not None
    assert report.loss.loss == pytest.approx(GOLDEN["cases"][case]["loss"], rel=1e-6)
    assert report.optim.grad_norm == pytest.approx(GOLDEN["cases"][case]["gradient_norm"], rel=1e-5)


def test_the_rows_are_those_that_trl_trained_on() -> None:
    assert GOLDEN["trl"] and {name: case["rows"] for name, case in GOLDEN["cases"].items()} == CASES
