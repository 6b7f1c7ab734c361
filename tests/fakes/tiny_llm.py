"""Builds a model folder that any engine can load, without a download: random weights, byte-level tokenizer, ChatML."""

import json
from pathlib import Path
from typing import Literal

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_llm(
    folder: Path,
    *,
    kind: Literal["qwen2", "qwen3"] = "qwen2",
    seed: int = 0,
    chat_template: bool = True,
    max_positions: int = 4096,
) -> Path:
    """Write config, weights and tokenizer; the same arguments give the same bytes.

    Every byte is one token (ids 0 to 255), then the three special tokens; the end of a turn is ``<|im_end|>``.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    end = 256 + SPECIAL_TOKENS.index("<|im_end|>")
    shape = {
        "vocab_size": 256 + len(SPECIAL_TOKENS),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": True,
        "initializer_range": 0.08,
        "eos_token_id": end,
        "pad_token_id": 256,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32))
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = 256
    model.save_pretrained(folder)
    write_byte_tokenizer(folder, chat_template)
    return folder


def write_byte_tokenizer(folder: Path, chat_template: bool = True) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    if chat_template:
        config["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _byte_vocabulary() -> dict[str, int]:
    """Return the vocabulary of the byte-level alphabet, in which printable characters stand for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return {stand_in[byte]: byte for byte in range(256)}
