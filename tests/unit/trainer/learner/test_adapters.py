"""A low-rank adapter: only it is trained and saved, the reference is the model without it, and engines get both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from searchrl.errors import ConfigurationError
from services.trainer.engines.vllm.adapters import AdapterTransfer
from services.trainer.learner.adapters import adapter_layers, check_adapter
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.learner_group import LearnerGroup
from services.trainer.learner.open_models import open_policy
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.train_batch import TrainBatch
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import random_rows, write_tiny_model
from tests.unit.trainer.learner.test_ranks import bytes_of, complete_gradient, moments_of, on_ranks

peft = pytest.importorskip("peft")


def settings_of(rank: int = 8, **settings: Any) -> LearnerSettings:
    values = {"token_budget": 100, "adapter": {"kind": "lora", "rank": rank}, **settings}
    return LearnerSettings.model_validate(values)


def step_once(learner: Learner, seed: int = 0) -> Tensor:
    learner.forward_backward(TrainBatch.of(random_rows(7, seed=seed)), LossSettings())
    gradient = complete_gradient(learner.policy)
    learner.optim_step(OptimSettings(learning_rate=1e-2))
    return gradient


def test_the_first_policy_is_the_model_and_the_reference_stays_it(model_folder: Path) -> None:
    rows = random_rows(5)
    expected = Learner.from_folder(model_folder, LearnerSettings(token_budget=100), 0).logprobs(rows)
    group = LearnerGroup.from_folder(model_folder, settings_of(), 0, has_critic=False, has_reference=True)
    assert group.reference is not None and group.reference.policy is group.policy.policy
    for first, second in zip(group.policy.logprobs(rows), expected, strict=True):
        assert np.array_equal(first, second)
    for _ in range(2):
        step_once(group.policy)
    assert max(abs(a - b).max() for a, b in zip(group.policy.logprobs(rows), expected, strict=True)) > 1e-3
    for row, array in zip(group.reference.annotate(rows), expected, strict=True):
        assert row.reference_logprobs is not None and np.array_equal(row.reference_logprobs, array)


def test_only_the_adapter_is_trained_and_saved(model_folder: Path, tmp_path: Path) -> None:
    learner = Learner.from_folder(model_folder, settings_of(), 0)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    for _ in range(2):  # in the first step B is 0, and A has no gradient
        step_once(learner)
    for name, parameter in learner.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lora_" not in name), name
    learner.save(tmp_path)
    adapter = sum(p.numel() for name, p in learner.model.named_parameters() if ".lora_" in name)
    assert (tmp_path / "weights.safetensors").stat().st_size < adapter * 4 * 1.5
    resumed = Learner.from_folder(model_folder, settings_of(), 99)
    resumed.load(tmp_path)
    assert resumed.publish(2).fingerprint == learner.publish(2).fingerprint
    for each in (resumed, learner):
        step_once(each)
    assert resumed.publish(3).fingerprint == learner.publish(3).fingerprint


def test_engines_and_exports_get_the_merged_weights_and_the_adapter_loads_with_peft(
    model_folder: Path, tmp_path: Path
) -> None:
    learner = Learner.from_folder(model_folder, settings_of(), 0)
    for _ in range(2):
        step_once(learner)
    published = learner.publish(1).tensors
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    assert published.keys() == dict(plain.named_parameters()).keys()
    learner.export(tmp_path / "final")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    beside = peft.PeftModel.from_pretrained(plain, tmp_path / "final" / "adapter")
    rows = random_rows(3)
    for row, scored in zip(rows, learner.logprobs(rows), strict=True):
        for model in (merged, beside):
            logits = model(input_ids=torch.tensor(row.token_ids)[None]).logits[0, :-1].log_softmax(-1)
            found = logits.gather(1, torch.tensor(row.token_ids)[1:, None])[:, 0].detach().numpy()
            assert np.allclose(np.where(row.mask[1:], found, 0), scored[1:], atol=1e-5)


def test_an_adapter_is_published_alone_in_the_files_that_peft_loads(model_folder: Path, tmp_path: Path) -> None:
    learner = Learner.from_folder(model_folder, settings_of(), 0)
    for _ in range(2):
        step_once(learner)
    published = learner.publish_adapter(3)
    step_once(learner)  # what is published is a copy
    staged = AdapterTransfer(tmp_path / "engine", 8).stage(published)
    (folder,) = (tmp_path / "engine").iterdir()
    assert staged.updates == ({"path": str(folder)},)
    assert staged.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = Learner.from_folder(model_folder, settings_of(), 0)
    for _ in range(2):
        step_once(again)
    beside = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), folder)
    rows = random_rows(3)
    for row, scored in zip(rows, again.logprobs(rows), strict=True):
        logits = beside(input_ids=torch.tensor(row.token_ids)[None]).logits[0, :-1].log_softmax(-1)
        found = logits.gather(1, torch.tensor(row.token_ids)[1:, None])[:, 0].detach().numpy()
        assert np.allclose(np.where(row.mask[1:], found, 0), scored[1:], atol=1e-5)
    assert again.write_adapter(tmp_path / "saved") == published.fingerprint
    assert (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size < staged.bytes
    with pytest.raises(ValueError, match="has no adapter"):
        Learner.from_folder(model_folder, LearnerSettings(), 0).publish_adapter(1)


def test_an_adapter_that_does_not_act_is_refused(model_folder: Path) -> None:
    policy = open_policy(model_folder, settings_of())
    constant = torch.zeros(3)
    with pytest.raises(ConfigurationError, match="does not act"):
        check_adapter(policy, lambda: constant)
    scores = iter([constant, constant + 1])
    with pytest.raises(ConfigurationError, match="although its matrices B are 0"):
        check_adapter(policy, lambda: next(scores))


def test_named_layers_alone_are_adapted_and_unknown_names_refused(model_folder: Path) -> None:
    def settings(*targets: str) -> LearnerSettings:
        return settings_of(adapter={"kind": "lora", "rank": 4, "targets": targets})

    names = adapter_layers(open_policy(model_folder, settings("q_proj", "down_proj")))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "down_proj"} and len(names) == 4
    with pytest.raises(ConfigurationError, match=r"learner\.adapter\.targets q_prj"):
        open_policy(model_folder, settings("q_prj"))


def train(ranks: Ranks, folder: Path, settings: LearnerSettings, state: Path) -> Mapping[str, Any]:
    learner = Learner.from_folder(folder, settings, 0, ranks)
    step_once(learner)
    gradient = step_once(learner, 1)
    learner.save(state)
    held = [bytes_of(dict(learner.model.named_parameters())), bytes_of(moments_of(learner))]
    return {"gradient": gradient, "weights": learner.publish(2).tensors, "held": held}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [8, 16, 32])
def test_two_ranks_train_an_adapter_of_any_rank_like_one_process(tmp_path: Path, rank: int) -> None:
    """A hang of the backward pass below rank 18 would end in the timeout."""
    folder = write_tiny_model(tmp_path / "model", width=64)
    one = train(ALONE, folder, settings_of(rank), tmp_path / "one")
    found = on_ranks(2, tmp_path / "ranks", train, folder, settings_of(rank), tmp_path / "two")
    for each in found:
        assert (each["gradient"] - one["gradient"]).abs().max() < 1e-6
        for name, weight in one["weights"].items():
            assert torch.allclose(each["weights"][name], weight, atol=1e-4), name
        for held, total in each["held"]:
            assert held <= total / 2 * 1.15
    resumed = Learner.from_folder(folder, settings_of(rank), 5)
    resumed.load(tmp_path / "two")
    assert all(torch.equal(t, found[0]["weights"][n]) for n, t in resumed.publish(2).tensors.items())


def test_bfloat16_holds_the_frozen_weights_in_two_bytes_and_the_adapter_in_four(model_folder: Path) -> None:
    learner = Learner.from_folder(model_folder, settings_of(dtype="bfloat16"), 0)
    for _ in range(2):
        step_once(learner)
    dtypes = {(".lora_" in name, p.dtype) for name, p in learner.model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert all(moment.dtype == torch.float32 for moment in moments_of(learner).values())


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("wide"), width=64)  # weights are quantized in blocks of 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_in_4_bits_is_trained_as_engines_and_exports_get_it(
    wide_folder: Path, tmp_path: Path, dtype: str
) -> None:
    pytest.importorskip("bitsandbytes")
    settings = settings_of(adapter={"kind": "qlora", "rank": 8, "targets": ["q_proj", "up_proj"]}, dtype=dtype)
    group = LearnerGroup.from_folder(wide_folder, settings, 0, has_critic=True, has_reference=True)
    learner, rows = group.policy, random_rows(4)
    assert group.reference is not None
    before = group.reference.annotate(rows)
    for _ in range(2):
        step_once(learner)
    trained = {name for name, parameter in learner.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    layer: Any = adapter_layers(learner.policy)["model.model.layers.0.self_attn.q_proj"]
    assert layer.base_layer.weight.dtype == torch.uint8
    for first, second in zip(group.reference.annotate(rows), before, strict=True):
        assert np.array_equal(first.reference_logprobs, second.reference_logprobs)  # type: ignore[arg-type]
    learner.export(tmp_path / "final")
    merged = Learner.from_folder(tmp_path / "final", LearnerSettings(token_budget=100), 0)
    assert merged.publish(1).tensors.keys() == learner.publish(1).tensors.keys()
    allowed = 1e-4 if dtype == "float32" else 0.05
    for first, second in zip(merged.logprobs(rows), learner.logprobs(rows), strict=True):
        assert np.allclose(first, second, atol=allowed)
    learner.save(tmp_path / "state")
    resumed = Learner.from_folder(wide_folder, settings, 3)
    resumed.load(tmp_path / "state")
    assert resumed.publish(2).fingerprint == learner.publish(2).fingerprint


def test_a_model_in_4_bits_is_not_sharded(monkeypatch: pytest.MonkeyPatch, wide_folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot be sharded or offloaded"):
        settings_of(adapter={"kind": "qlora"}, ranks=2)
    monkeypatch.setattr("services.trainer.learner.model_folder.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"install searchrl\[qlora\]"):
        open_policy(wide_folder, settings_of(adapter={"kind": "qlora"}))
