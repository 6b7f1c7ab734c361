"""Model folders that are loaded, those that are refused, and the contents of an export."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from searchrl.errors import ConfigurationError
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.model_folder import fingerprint_tensors, load_language_model
from tests.fakes.model_folders import byte_level_tokenizer
from tests.fakes.tiny_families import write_family

WEIGHTS = "model.safetensors"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a folder; names have double underscores for dots."""
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def load(folder: Path) -> None:
    load_language_model(folder, torch.float32)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", HEAD])
def test_a_missing_tensor_is_named_and_not_made_up(tmp_path: Path, name: str) -> None:
    folder = write_family(tmp_path, "qwen2")  # its head is not tied to the embeddings
    change_tensors(folder, **{name.replace(".", "__"): None})
    with pytest.raises(ConfigurationError, match=f"has no tensor {name}"):
        load(folder)


def test_tensors_that_the_model_has_no_place_for_are_named(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama")
    change_tensors(folder, **{f"v_head__{n}": torch.zeros(2) for n in range(5)})
    with pytest.raises(ConfigurationError, match=r"does not declare: v_head\.0, v_head\.1, v_head\.2 and 2 more"):
        load(folder)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama")
    change_tensors(folder, model__norm__weight=torch.zeros(7))
    with pytest.raises(ConfigurationError, match=r"shape differs from its configuration: model\.norm\.weight"):
        load(folder)


def test_tied_weights_that_differ_are_kept_apart_and_exported_so(tmp_path: Path, caplog) -> None:
    folder = write_family(tmp_path / "source", "qwen3")  # ties its embeddings
    change_tensors(folder, lm_head__weight=torch.randn(64, 32))
    (folder / "tokenizer.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        learner = Learner.from_folder(folder, LearnerSettings(), 0)
    assert "two different tensors" in caplog.text
    learner.export(tmp_path / "final")
    given, exported = load_file(folder / WEIGHTS), load_file(tmp_path / "final" / WEIGHTS)
    assert json.loads((tmp_path / "final" / "config.json").read_text())["tie_word_embeddings"] is False
    for name in (HEAD, EMBEDDINGS):
        assert torch.equal(given[name], exported[name])
    ids = torch.tensor([[5, 6, 7]])
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    with torch.no_grad():
        assert torch.equal(served(input_ids=ids).logits, learner.model(input_ids=ids).logits)


def test_a_head_that_equals_the_tied_embeddings_stays_tied(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "qwen3")
    change_tensors(folder, lm_head__weight=load_file(folder / WEIGHTS)[EMBEDDINGS].clone())
    model = load_language_model(folder, torch.float32)
    assert model.config.tie_word_embeddings
    head = model.get_output_embeddings()
    assert head is not None and head.weight is model.get_input_embeddings().weight


def test_sampling_defaults_are_not_exported_and_token_ids_are(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "source", "llama")
    defaults = {"repetition_penalty": 1.1, "top_k": 20, "do_sample": True, "temperature": 0.6, "eos_token_id": [1, 2]}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    Learner.from_folder(folder, LearnerSettings(), 0).export(tmp_path / "final")
    assert json.loads((tmp_path / "final" / "generation_config.json").read_text()) == {"eos_token_id": [1, 2]}
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert not {"repetition_penalty", "top_k", "temperature"} & set(config)


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama")
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        load(folder)


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(ConfigurationError, match=r"LoRA adapter for org/base.*merge"):
        load(tmp_path)


def test_the_engine_refuses_a_tokenizer_with_more_ids_than_embeddings(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama")
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))  # 256 ids, but the model has 64 embeddings
    with pytest.raises(ConfigurationError, match=r"ids up to 255, but the model has embeddings for ids up to 63 only"):
        TorchEngine.from_folder(folder)


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama")
    (folder / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigurationError, match="cannot load the model"):
        load(folder)


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def test_the_order_of_names_and_the_memory_layout_do_not_matter() -> None:
    strided = {"b": TENSORS["b"].clone(), "a": TENSORS["a"].t().contiguous().t()}
    assert not strided["a"].is_contiguous()
    assert fingerprint_tensors(strided) == fingerprint_tensors(TENSORS)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": TENSORS["a"] + torch.tensor([0, 0, 1e-6]), "b": TENSORS["b"]},
        {"a": TENSORS["a"].reshape(3, 2), "b": TENSORS["b"]},
        {"a": TENSORS["a"], "c": TENSORS["b"]},
        {"a": TENSORS["a"], "b": TENSORS["b"].bfloat16()},
        {"a": TENSORS["a"]},
    ],
    ids=["value", "shape", "name", "dtype", "missing"],
)
def test_any_difference_changes_the_fingerprint(changed) -> None:
    assert fingerprint_tensors(changed) != fingerprint_tensors(TENSORS)


def test_the_fingerprint_of_bfloat16_weights_exists() -> None:
    assert len(fingerprint_tensors({"a": torch.ones(3, dtype=torch.bfloat16)})) == 64


def test_an_exported_file_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner.from_folder(write_family(tmp_path / "source", "llama"), LearnerSettings(), 0)
    steps: list[tuple[str, str]] = []
    rename = Path.rename

    def note_flush(descriptor: int) -> None:
        steps.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def note_rename(path: Path, target: Path) -> Path:
        steps.append(("rename", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "rename", note_rename)
    learner.export(tmp_path / "final")
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert {"config.json", "model.safetensors"} <= names == {name for step, name in steps if step == "rename"}
    for name in names:
        place = steps.index(("rename", name))
        assert (steps[place - 1], steps[place + 1]) == (("flush", name), ("flush", "final"))
