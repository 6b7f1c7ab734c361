"""Learner and engine give the log-probabilities of the model's own forward pass; other models are refused."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, MiniMaxConfig

from searchrl.agent.types import Sampling
from searchrl.errors import ConfigurationError
from services.trainer.engines.kv_pool import attention_window
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.learner import output_layer
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.model_folder import load_language_model, load_model
from services.trainer.learner.scoring import PolicyModel, compute_logprobs
from services.trainer.learner.train_batch import RowKey, TrainRow
from tests.fakes.tiny_families import FAMILIES, SHAPE, write_family
from tests.fakes.tiny_policy import NumberedWords, plain_logprobs, random_ids

families = pytest.mark.parametrize("kind", FAMILIES)


def row_of(ids: list[int], number: int = 0) -> TrainRow:
    mask = np.arange(len(ids)) > 0
    zeros = np.zeros(len(ids), dtype=np.float32)
    return TrainRow(
        key=RowKey(number, 0), token_ids=np.array(ids), mask=mask, behavior_logprobs=zeros,
        versions=np.zeros(len(ids), dtype=np.int64), kinds=np.zeros(len(ids), dtype=np.int64), advantages=zeros,
        temperature=1.0,
    )  # fmt: skip


@families
@pytest.mark.parametrize("options", [{}, {"packed": True}, {"gradient_checkpointing": True}], ids=str)
def test_the_learner_scores_as_the_model_itself(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    folder = write_family(tmp_path, kind)
    model = load_model(folder, LearnerSettings(**options))
    rows = [row_of(random_ids(length, length), number) for number, length in enumerate((20, 9))]
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    for row, scored in zip(rows, compute_logprobs(PolicyModel(model), rows, LearnerSettings(**options)), strict=True):
        assert scored[1:] == pytest.approx(plain_logprobs(plain, row.token_ids.tolist()), abs=2e-5)


@families
async def test_the_engine_samples_from_the_model_itself(tmp_path: Path, kind: str) -> None:
    folder = write_family(tmp_path, kind)
    engine = TorchEngine(load_language_model(folder, torch.float32), NumberedWords(), slots=4)
    ids = random_ids(12, 3)
    first = await engine.generate(ids, Sampling(max_tokens=5, seed=1), "a")
    ids += [*first.ids, *random_ids(4, 4)]
    second = await engine.generate(ids, Sampling(max_tokens=5, seed=2), "a")
    ids += second.ids
    scored = await engine.score(ids, 1)
    await engine.close()
    plain = plain_logprobs(AutoModelForCausalLM.from_pretrained(folder).eval(), ids)
    assert scored == pytest.approx(plain, abs=2e-5)
    assert second.logprobs == pytest.approx(plain[-len(second.ids) :], abs=2e-5)


def test_a_model_that_does_more_to_its_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_family(tmp_path, "granite")
    monkeypatch.setattr(output_layer, "logit_scale", lambda _config: 1.0)  # as if the scale were unknown to the engine
    with pytest.raises(ConfigurationError, match=r"GraniteForCausalLM changes its logits.*nats"):
        load_language_model(folder, torch.float32)


def test_capped_logits_are_refused(tmp_path: Path) -> None:
    Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8)).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="caps its logits"):
        load_language_model(tmp_path, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@families
def test_the_check_of_logits_passes_in_either_precision(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    assert load_language_model(write_family(tmp_path, kind), dtype).dtype == dtype


def test_layers_of_several_kinds_are_refused_by_the_engine() -> None:
    with pytest.raises(ConfigurationError, match="layers of one kind"):
        attention_window(MiniMaxConfig(num_hidden_layers=2))
    mixed = Gemma2Config(**SHAPE)
    with pytest.raises(ConfigurationError, match="sliding_attention; it cannot be trained; to serve it, use"):
        attention_window(mixed)


def test_dropout_stays_off_under_gradient_checkpointing_and_layers_are_recomputed(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "gpt2")  # its configuration has a dropout of 0.1 everywhere
    settings = LearnerSettings(gradient_checkpointing=True)
    model = load_model(folder, settings)
    rows = [row_of(random_ids(30, 1))]
    first, second = (compute_logprobs(PolicyModel(model), rows, settings) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    calls: list[int] = []
    layer = cast(Any, model.base_model).h[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(input_ids=torch.tensor([random_ids(6, 1)]), use_cache=False).logits.sum().backward()
    assert len(calls) == 2  # once in the forward and once in the backward pass
