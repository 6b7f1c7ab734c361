"""Equal weights have equal fingerprints, and different weights have different ones."""

import pytest
import torch

from services.trainer.checkpoints.fingerprint import fingerprint_tensors

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def test_the_order_of_names_and_the_memory_layout_do_not_matter() -> None:
    strided = {"b": WEIGHTS["b"].clone(), "a": WEIGHTS["a"].t().contiguous().t()}
    assert not strided["a"].is_contiguous()
    assert fingerprint_tensors(strided) == fingerprint_tensors(WEIGHTS)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": WEIGHTS["a"] + torch.tensor([0, 0, 1e-6]), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].reshape(3, 2), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
        {"a": WEIGHTS["a"], "b": WEIGHTS["b"].bfloat16()},
        {"a": WEIGHTS["a"]},
    ],
    ids=["value", "shape", "name", "dtype", "missing"],
)
def test_any_difference_changes_the_fingerprint(changed) -> None:
    assert fingerprint_tensors(changed) != fingerprint_tensors(WEIGHTS)


def test_the_fingerprint_of_bfloat16_weights_exists() -> None:
    assert len(fingerprint_tensors({"a": torch.ones(3, dtype=torch.bfloat16)})) == 64
