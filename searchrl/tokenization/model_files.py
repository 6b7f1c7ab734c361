"""Reads the small files of a model folder and checks them before any weights are read."""

import hashlib
import json
from pathlib import Path

from searchrl.errors import ConfigurationError
from searchrl.input_files import IS_POINTER, is_lfs_pointer, parse_json

ADAPTER_FILE = "adapter_config.json"
# The names of Llama and Qwen, GPT-2, OLMo, and ChatGLM.
WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
PROMPT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "searcher.json")
"""Together with the token ids of ``generation_config.json``: everything but the weights that determines a rollout."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_model_files(folder: Path) -> None:
    """Refuse a folder that is not a complete model.

    Raises:
        ConfigurationError: it is an adapter, holds Git LFS pointers, or has no ``config.json``.
    """
    if (folder / ADAPTER_FILE).is_file():
        base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path") or "its base model"
        raise ConfigurationError(
            f"{folder} holds a LoRA adapter for {base}, not a complete model; merge the adapter into that model "
            "(peft: merge_and_unload, then save_pretrained) and use the merged folder"
        )
    if folder.is_dir():
        pointers = sorted(path.name for path in folder.iterdir() if is_lfs_pointer(path))
        if pointers:
            raise ConfigurationError(f"{folder / pointers[0]} {IS_POINTER} in that folder")
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder} is not a model folder: it has no config.json")


def check_vocabulary(folder: Path, tokenizer_size: int) -> None:
    """Refuse a tokenizer with ids for which the model has no embeddings.

    More embeddings than ids are common (padding to a round size) and accepted.

    Raises:
        ConfigurationError: the tokenizer is larger.
    """
    rows = _number(folder, ("vocab_size",))
    if rows is not None and tokenizer_size > rows:
        raise ConfigurationError(
            f"the tokenizer in {folder} has ids up to {tokenizer_size - 1}, but the model has embeddings for ids up to "
            f"{rows - 1} only (vocab_size {rows}); take the model's own tokenizer, or resize the embeddings"
        )


def context_window(folder: Path) -> int | None:
    """Return the tokens of the model's context; None if its configuration states no limit."""
    return _number(folder, WINDOW_NAMES)


def check_context(folder: Path, needed_tokens: int) -> None:
    """Refuse limits that the model's context cannot hold.

    Raises:
        ConfigurationError: the context is smaller than ``needed_tokens``.
    """
    window = context_window(folder)
    if window is not None and needed_tokens > window:
        raise ConfigurationError(
            f"the model in {folder} has a context of {window} tokens, but limits.max_context_tokens in its "
            f"searcher.json is {needed_tokens}; set the limit to {window} or less"
        )


def tokenizer_hash(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer: token ids mean the same in every folder with the same one.

    Raises:
        ConfigurationError: the folder has none.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigurationError(f"{folder} has no tokenizer.json; a model folder must hold one")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def prompting_hash(folder: Path) -> str:
    """Return the SHA-256 of everything but the weights that determines prompts and the end of a generation."""
    digest = hashlib.sha256()
    for name in PROMPT_FILES:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        # Name and length precede each content, so that no bytes can move from one file to the next with the same
        # digest.
        digest.update(f"{name} {len(content)}\n".encode() + content)
    generation = read_json(folder / "generation_config.json")
    digest.update(json.dumps({name: generation.get(name) for name in TOKEN_IDS}, sort_keys=True).encode())
    return digest.hexdigest()


def _number(folder: Path, names: tuple[str, ...]) -> int | None:
    """Return the first of these numbers in ``config.json``, or in its ``text_config`` (multimodal models)."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for name in names:
            value = values.get(name)
            # bool is a subclass of int.
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def read_json(file: Path) -> dict[str, object]:
    """Return the object in a JSON file; an empty one if there is no such file.

    Raises:
        ConfigurationError: the file is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{file} must hold a JSON object")
    return values
