"""Inconsistent files of a searcher are refused at start, and its hash covers every file that shapes its prompts."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_files import context_window, prompting_hash
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder

MODEL: dict[str, object] = {"vocab_size": 300, "max_position_embeddings": 9000}


def searcher(folder: Path, config: dict[str, object] = MODEL, **limits: int) -> Path:
    profile = {"limits": limits} if limits else {}
    plain = "{{ messages[-1]['content'] }}"
    return write_model_folder(folder, byte_level_tokenizer(), {}, plain, config=config, searcher=profile)


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 256, "max_position_embeddings": 8000},
        {"vocab_size": 50_000, "n_positions": 8000},  # embeddings padded beyond the tokenizer
        {"text_config": MODEL},
        {"vocab_size": 256},  # no maximum length is given
    ],
)
def test_a_model_that_fits_its_tokenizer_and_limits_is_accepted(tmp_path: Path, config: dict[str, object]) -> None:
    assert ModelTokenizer.of_searcher(searcher(tmp_path, config)).vocab_size == 256


@pytest.mark.parametrize("config", [{"vocab_size": 255}, {"text_config": {"vocab_size": 255}}])
def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"ids up to 255, .* up to 254 only \(vocab_size 255\)"):
        ModelTokenizer.of_searcher(searcher(tmp_path, config))


def test_a_context_smaller_than_the_limits_is_refused_with_both_numbers(tmp_path: Path) -> None:
    small: dict[str, object] = {"vocab_size": 300, "max_position_embeddings": 900}
    with pytest.raises(ConfigurationError, match=r"context of 900 tokens.*searcher\.json is 8000; .* 900 or less"):
        ModelTokenizer.of_searcher(searcher(tmp_path, small))
    with pytest.raises(ConfigurationError, match=r"is 901;"):
        ModelTokenizer.of_searcher(searcher(tmp_path, small, max_context_tokens=901))
    assert ModelTokenizer.of_searcher(searcher(tmp_path, small, max_context_tokens=900))
    assert context_window(tmp_path) == 900


def test_an_adapter_without_its_model_is_reported_as_such(tmp_path: Path) -> None:
    folder = searcher(tmp_path)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ConfigurationError, match="LoRA adapter for org/base"):
        ModelTokenizer.of_searcher(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_reported_as_such(tmp_path: Path, name: str) -> None:
    folder = searcher(tmp_path)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigurationError, match=f"{name} is a Git LFS pointer"):
        ModelTokenizer.of_searcher(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "searcher.json"]
)
def test_the_hash_of_a_searcher_changes_with_every_file_that_makes_its_prompts(tmp_path: Path, name: str) -> None:
    folder = searcher(tmp_path)
    before = prompting_hash(folder)
    assert prompting_hash(folder) == before
    (folder / name).write_text((folder / name).read_text() + " ")
    assert prompting_hash(folder) != before


def test_the_hash_covers_the_ends_of_a_generation_and_not_sampling_defaults(tmp_path: Path) -> None:
    folder = searcher(tmp_path)
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": 2, "top_k": 20}))
    before = prompting_hash(folder)
    generation.write_text(json.dumps({"eos_token_id": 2, "top_k": 50}))
    assert prompting_hash(folder) == before
    generation.write_text(json.dumps({"eos_token_id": [2, 3], "top_k": 50}))
    assert prompting_hash(folder) != before
