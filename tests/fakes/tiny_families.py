"""Builds tiny random models of families that differ in logits scaling, attention or names of parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GPT2_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "eos_token_id": 1,
}


def _of(name: str, **more: object) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(**{**SHAPE, **more})
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return build


def _gpt2() -> PreTrainedModel:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SHAPE))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2": _of("Qwen2", tie_word_embeddings=False),
    "qwen3": _of("Qwen3", head_dim=16, tie_word_embeddings=True),
    "llama": _of("Llama"),
    "phi3": _of("Phi3"),
    "olmo2": _of("Olmo2"),
    "mistral": _of("Mistral", sliding_window=None),
    "mistral_window": _of("Mistral", sliding_window=6),
    "granite": _of("Granite", logits_scaling=4.0),
    "cohere": _of("Cohere", logit_scale=0.0625),
    "gpt2": _gpt2,
}


def write_family(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a model with random weights, scaled so that its distributions are peaked, and return its folder.

    With the usual small weights all tokens are about equally likely, and an error in the logits would hardly show.
    """
    torch.manual_seed(seed)
    model = FAMILIES[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "wpe" not in name:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    return folder
