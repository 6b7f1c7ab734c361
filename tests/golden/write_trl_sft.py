"""Writes the tokens, masks and losses that TRL's own SFTTrainer computes for rows of public formats.

    pip install --no-deps --target /tmp/trl trl==1.16.0 datasets dill multiprocess xxhash pandas
    PYTHONPATH=/tmp/trl:. python -m tests.golden.write_trl_sft

The model is the warm start of the small world, whose weights are part of the package, with a chat template that marks
what the assistant writes, as TRL needs it.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from searchrl.small_world.files import WARM_START_FOLDER

IGNORED = -100  # label of a token without a loss
FILE = Path(__file__).with_name("trl_sft.json")
TEMPLATE = (
    "{% for tool in tools or [] %}tool {{ tool.function.name }} . {% endfor %}"
    "{% for message in messages %}{{ message.role }} : "
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }} ( {{ call.function.arguments | tojson }} )"
    "{% endfor %}{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": {"query": "Wren Hall", "top_k": 3}}}
FRAGMENT = {"role": "user", "content": "Where is Wren Hall?"}
CASES: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {
            "messages": [
                {"role": "system", "content": "Answer in a word."},
                FRAGMENT,
                {"role": "assistant", "content": "In Ostrava."},
                {"role": "user", "content": "And the mill?"},
                {"role": "assistant", "content": "Also there, behind the old bridge."},
            ]
        },
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, who are you?"}]},
        {
            "messages": [
                FRAGMENT,
                {"role": "assistant", "content": "The documents do not say where it is."},
                {"role": "user", "content": "Thanks!"},
            ]
        },
    ],
    "tool calls": [
        {
            "tools": TOOLS,
            "messages": [
                FRAGMENT,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "Wren Hall stands in Ostrava.", "tool_call_id": "c1"},
                {"role": "assistant", "content": "It is in Ostrava."},
            ],
        }
    ],
    "prompt and completion": [
        {"prompt": [FRAGMENT], "completion": [{"role": "assistant", "content": "In the north of Ostrava."}]},
        {
            "prompt": [FRAGMENT, {"role": "assistant", "content": "Why?"}, {"role": "user", "content": "To go there"}],
            "completion": [{"role": "assistant", "content": "Then take the train."}],
        },
    ],
    "texts": [
        {"prompt": "The creator of Juniper Bank is", "completion": " Mateo Castillo, who lives there."},
        {"prompt": "Where? ", "completion": "Here."},
    ],
}


def write_marked_model(folder: Path) -> Path:
    """Copy the warm start with the template above."""
    shutil.copytree(WARM_START_FOLDER, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def compute(model: Path, rows: list[dict[str, Any]]) -> dict[str, object]:
    """Return the tokens and masks of the rows, and loss and gradient norm of one batch of all of them."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    is_chat = "messages" in rows[0]
    with TemporaryDirectory() as output:
        arguments = SFTConfig(
            output_dir=output, per_device_train_batch_size=len(rows), assistant_only_loss=is_chat, max_length=None,
            report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, dataset_num_proc=None,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
        loss.backward()
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        return {
            "rows": rows,
            "input_ids": list(trainer.train_dataset["input_ids"]),
            "masks": [[label != IGNORED for label in labels] for labels in trainer.train_dataset["labels"]],
            "loss": loss.item(),
            "gradient_norm": torch.nn.utils.get_total_norm(gradients).item(),
        }


def main() -> None:
    with TemporaryDirectory() as name:
        model = write_marked_model(Path(name) / "model")
        cases = {case: compute(model, rows) for case, rows in CASES.items()}
    FILE.write_text(json.dumps({"trl": version("trl"), "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
