"""Writes the untrained model of a small-world searcher: random weights, tokenizer and searcher profile."""

from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.agent.types import Limits
from services.trainer.small_world.tokenizer import EOS, MOST_TOKENS, PAD, build_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen3Config

# Questions chain at most three facts, so three searches suffice. The context is half of what the model is configured
# for (MOST_TOKENS).
SMALL_WORLD_PROFILE = SearcherProfile(
    protocol="s3",
    mode="strict",
    template="Find documents that answer the question .<question>{question}</question>{documents}",
    limits=Limits(
        max_searches=3,
        top_k=3,
        max_selected=3,
        max_turn_tokens=26,
        max_observation_tokens=200,
        max_context_tokens=512,
    ),
    temperature=1.0,
    initial_top_k=3,
)


def write_untrained_model(folder: Path, seed: int) -> None:
    """Write a complete model folder with random weights: 0.66 M parameters, of which a tenth are embeddings."""
    import torch
    from transformers import GenerationConfig, Qwen3ForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer, folder)
    (folder / PROFILE_FILE).write_text(SMALL_WORLD_PROFILE.to_json(), encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    pad, eos = vocabulary[PAD], vocabulary[EOS]
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(_config(len(vocabulary), pad, eos))
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=eos)
    model.save_pretrained(folder)


def _config(vocabulary: int, pad: int, eos: int) -> "Qwen3Config":
    from transformers import Qwen3Config

    # Small enough to sample and train on two CPU cores; more width or more layers cost time in both. Parameters: 514 x
    # 128 = 66 k of embeddings, which are the head as well; per layer 49 k of attention (128 x 128 for queries and for
    # outputs, 128 x 64 for keys and for values) and 3 x 128 x 256 = 98 k of MLP; with 4 layers 0.66 M.
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        max_position_embeddings=MOST_TOKENS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
    )
