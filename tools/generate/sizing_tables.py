"""Generates the table of a learner's memory per GPU in docs/operations/sizing.md, as ``--dry-run`` estimates it."""

import json
import tempfile
from pathlib import Path

from services.trainer.preflight.sizes import count_described_parameters, estimate_sizes
from services.trainer.settings import load_run_config
from tools.generate.marked_section import replace_section

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/operations/sizing.md"
GPUS = (1, 2, 4, 8)
GPU_GIB = 80
RESERVED = 0.1
"""Share of a GPU's memory left to CUDA, its libraries and the allocator's fragments; an assumption."""
TOKEN_BUDGET = 16384
# The published config.json of each model of Qwen2.5 (2412.15115).
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "14B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
WAYS = {
    "GRPO": ("preset=search_r1_grpo", "algorithm.loss.kl_coefficient=0"),
    "GRPO with a KL term": ("preset=search_r1_grpo",),
    "PPO": ("preset=search_r1_ppo",),
    "GRPO, LoRA of rank 16": ("preset=search_r1_grpo", "algorithm.loss.kl_coefficient=0", "learner.adapter.kind=lora"),
}
"""Settings by the name of the row: the presets compute in bfloat16, with gradient checkpointing."""


def files() -> dict[str, str]:
    """Return the text of the page by its path in the repository."""
    return {PAGE: replace_section((ROOT / PAGE).read_text(), "learner memory", learner_table())}


def learner_table() -> str:
    """Return GiB of each GPU by model, way of training and number of GPUs; a dash where it is more than a GPU has."""
    lines = [f"| policy | way | {' | '.join(map(_gpus, GPUS))} |", f"|---|---|{'---|' * len(GPUS)}"]
    for model, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", **shape}))
            parameters = count_described_parameters(folder)
            for way, settings in WAYS.items():
                cells = [_cell(_gib(folder, parameters, (*settings, f"learner.ranks={gpus}"))) for gpus in GPUS]
                lines.append(f"| {model} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _gib(folder: Path, parameters: int, settings: tuple[str, ...]) -> float:
    places = (f"model={folder}", f"questions={folder / 'questions'}", f"output={folder / 'run'}")
    given = (*settings, *places, "learner.device=cuda", f"learner.token_budget={TOKEN_BUDGET}")
    return estimate_sizes(load_run_config(None, given), parameters, TOKEN_BUDGET).learner / 2**30


def _cell(gib: float) -> str:
    return f"{gib:,.0f}" if gib <= GPU_GIB * (1 - RESERVED) else "–"
