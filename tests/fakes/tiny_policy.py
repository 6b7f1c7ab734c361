"""Builds a random two-layer model over a vocabulary of numbered words, with its tokenizer."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 64
EOS = 1
STOP = "</query>"
STOP_IDS = (2, 3)  # the stop string takes two tokens


class NumberedWords:
    """A tokenizer in which token n is the word "wn", two tokens spell the stop string, and one ends the text."""

    eos_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        return [int(word.removeprefix("w")) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join({EOS: "", STOP_IDS[0]: "</qu", STOP_IDS[1]: "ery>"}.get(each, f"w{each} ") for each in ids)

    def render_prompt(self, text: str) -> list[int]:
        return self.encode(text)


def tiny_model(seed: int = 0, kind: str = "qwen3") -> PreTrainedModel:
    """Return a model of two layers, width 32, two query heads per key head, and large weights.

    Large weights make its distributions peaked; with small ones an error in the logits would hardly show.
    """
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
    }  # fmt: skip
    if kind == "qwen2":
        model: PreTrainedModel = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=False))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16, tie_word_embeddings=True))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.eval()


def random_ids(length: int, seed: int) -> list[int]:
    """Return random ids without the stop string and without the end of the text."""
    rng = random.Random(seed)
    return [rng.randrange(4, VOCABULARY) for _ in range(length)]


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, ids: Sequence[int], temperature: float = 1.0) -> list[float]:
    """Return the log-probability of each id but the first, by one ordinary forward pass."""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
