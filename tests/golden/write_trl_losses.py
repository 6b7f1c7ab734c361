"""Writes losses and gradients that TRL's own code computes, for comparison with this project's.

    pip install --no-deps --target /tmp/trl trl==1.16.0 datasets dill multiprocess xxhash pandas
    PYTHONPATH=/tmp/trl:. python -m tests.golden.write_trl_losses

``GRPOTrainer._compute_loss`` runs as it is, on drawn tensors instead of a model's output, without a KL term: its
trainer needs a model, a tokenizer and a data set, of which that method uses nothing but what ``trainer_with`` gives it.
"""

import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).with_name("trl_losses.json")
ROWS, WIDTH, MOST_TOKENS = 6, 12, 16
# Settings in TRL's names. Ratios of the drawn tensors are between 0.55 and 2.7, so that every bound is reached.
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    "grpo, two-sided clipping": {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "delta": 1.5},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    "dapo": {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
    "cispo": {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.5},
    "gspo": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4,
    },
}  # fmt: skip


def draw_inputs() -> dict[str, Tensor]:
    """Draw rows of unequal length with observations in between, and advantages of both signs."""
    generator = torch.Generator().manual_seed(3)  # with which some rows and tokens, and not all, reach each bound
    lengths = torch.randint(4, WIDTH + 1, (ROWS, 1), generator=generator)
    old = -2 * torch.rand(ROWS, WIDTH, generator=generator) - 0.1
    drift = 0.4 * torch.randn(ROWS, WIDTH, generator=generator)
    sampled = (torch.rand(ROWS, WIDTH, generator=generator) < 0.7).long()  # the rest is text of the environment
    sampled[:, 0] = 1
    return {
        "completion_mask": (torch.arange(WIDTH)[None] < lengths).long(),
        "tool_mask": sampled,
        "advantages": torch.randn(ROWS, generator=generator),
        "old_per_token_logps": old,
        "per_token_logps": old + drift,
    }


def trainer_with(logprobs: Tensor, settings: dict[str, Any]) -> SimpleNamespace:
    """Return what the method reads of its trainer: these settings, and otherwise one process and no further terms."""
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda value: value, reduce=lambda value, reduction: value
    )
    options = SimpleNamespace(delta=settings.get("delta"), use_bias_correction_kl=False, steps_per_generation=1)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        model=SimpleNamespace(training=True), accelerator=accelerator, args=options, beta=0.0, use_vllm=False,
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        current_gradient_accumulation_steps=1, max_completion_length=MOST_TOKENS, _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)), loss_type=settings["loss_type"],
        importance_sampling_level=settings.get("importance_sampling_level", "token"),
        epsilon_low=settings["epsilon_low"], epsilon_high=settings["epsilon_high"],
    )  # fmt: skip


def compute(inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, object]:
    """Return the loss, and its gradient with respect to every token's log-probability."""
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

    logprobs = inputs["per_token_logps"].clone().requires_grad_()
    ids = torch.zeros(ROWS, WIDTH, dtype=torch.long)
    prompts = {"prompt_ids": ids[:, :1], "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long), "completion_ids": ids}
    count = (inputs["completion_mask"] * inputs["tool_mask"]).sum()
    given = {**inputs, **prompts, "num_items_in_batch": count}
    loss = GRPOTrainer._compute_loss(trainer_with(logprobs, settings), None, given)
    loss.backward()
    assert logprobs.grad is not None
    return {"settings": settings, "loss": loss.item(), "gradient": logprobs.grad.tolist()}


def main() -> None:
    inputs = draw_inputs()
    cases = {name: compute(inputs, settings) for name, settings in CASES.items()}
    written = {"trl": version("trl"), "most_tokens": MOST_TOKENS}
    tensors = {name: tensor.tolist() for name, tensor in inputs.items()}
    FILE.write_text(json.dumps({**written, "inputs": tensors, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
