"""The published presets hold the values of the published runs: each setting beside the place that states it."""

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import pytest
import yaml

from searchrl.cli.command_parser import CommandParser
from searchrl.cli.commands import submit, train
from services.trainer.settings import PRESETS, RunConfig, load_run_config, preset_names

NEEDED = ["model=m", "questions=q.jsonl", "output=runs/first", "services.generator=g:1"]

S3 = "s3, scripts/train/train_s3.sh"
R1 = "Search-R1, scripts/nq_hotpotqa/v0.2"
VERL = "verl, run_qwen2.5-3b_instruct_search_multiturn.sh"
OLD = "verl 0.1, verl/trainer/config/ppo_trainer.yaml"
NEW = "verl 0.4, verl/trainer/config/ppo_trainer.yaml"
CODE = "verl, verl/workers/fsdp_workers.py"
LOSS = "verl, verl/trainer/ppo/core_algos.py"
OURS = "this project"

Table = Mapping[str, tuple[object, str]]
"""By the name of a setting: its value, and where the published run states it, or that the choice is ours."""


def adamw(where: str, rate: float, warmup: int, warmup_from: str, source: str) -> Table:
    """The rows of one optimizer; AdamW's own values are defaults of verl that no script changes."""
    return {
        f"{where}.kind": ("adamw", CODE),
        f"{where}.learning_rate": (rate, f"{source}: optim.lr"),
        f"{where}.betas": ((0.9, 0.999), f"{CODE}: optim_config.get('betas')"),
        f"{where}.weight_decay": (0.01, f"{CODE}: optim_config.get('weight_decay')"),
        f"{where}.max_grad_norm": (1.0, f"{OLD}: grad_clip"),
        f"{where}.schedule.kind": ("constant", f"{CODE}: get_constant_schedule_with_warmup"),
        f"{where}.schedule.warmup_steps": (warmup, f"{source}: {warmup_from}"),
    }


def sizes(groups: int, members: int, source: str) -> Table:
    """The rows of a step's batch."""
    return {
        "rollouts.groups_per_step": (groups, f"{source}: data.train_batch_size"),
        "rollouts.group_size": (members, f"{source}: rollout.n_agent or rollout.n"),
        "rollouts.max_staleness": (0, "verl 0.1 samples and trains in turn"),
        "rollouts.truncated": ("train", "verl has no overlong filter"),
    }


# The schedule of verl advances once per training step, the one here once per optimizer step, of which there are
# ``mini_batches`` in a training step.
CLIPPED: Table = {
    "algorithm.loss.policy": ("ppo", LOSS),
    "algorithm.loss.clip_low": (0.2, f"{OLD}: clip_ratio"),
    "algorithm.loss.clip_high": (0.2, f"{OLD}: clip_ratio"),
    "algorithm.loss.aggregation": ("token_mean", f"{LOSS}: masked_mean"),
    "algorithm.loss.old_policy": ("behavior", OURS),
    "algorithm.loss.sequence_ratio_low": (0.0, f"{LOSS}: no row is masked"),
    "algorithm.loss.sequence_ratio_high": (None, f"{LOSS}: no row is masked"),
    "update.epochs": (1, f"{OLD}: ppo_epochs"),
    # its optimizers hold float32 weights, as here
    "learner.dtype": ("bfloat16", f"{CODE}: mixed_precision.get('param_dtype', 'bf16')"),
    "learner.gradient_checkpointing": (True, "every script: enable_gradient_checkpointing"),
}
PPO: Table = {
    **CLIPPED,
    "algorithm.kind": ("ppo", "adv_estimator=gae"),
    "algorithm.loss.kl_coefficient": (0.0, f"{OLD}: use_kl_loss"),
    "algorithm.loss.entropy_coefficient": (0.001, f"{OLD}: entropy_coeff"),
    "algorithm.gae.gamma": (1.0, f"{OLD}: gamma"),
    "algorithm.gae.gae_lambda": (1.0, f"{OLD}: lam"),
    "algorithm.gae.whiten": (True, f"{LOSS}: masked_whiten"),
    "algorithm.gae.min_std": (1e-4, f"{LOSS}: masked_whiten divides by the root of the variance plus 1e-8"),
    "algorithm.gae.kl_coefficient": (0.001, "algorithm.kl_ctrl.kl_coef=0.001, kl_penalty kl"),
    "algorithm.value_loss.clip": (0.5, f"{OLD}: cliprange_value"),
    "algorithm.value_loss.coefficient": (0.5, f"{LOSS}: compute_value_loss"),
    "algorithm.value_loss.aggregation": ("token_mean", f"{LOSS}: compute_value_loss"),
}
GRPO: Table = {
    **CLIPPED,
    "algorithm.kind": ("grpo", "adv_estimator=grpo"),
    "algorithm.advantage": ("group_std", f"{LOSS}: compute_grpo_outcome_advantage"),
    "algorithm.scale": (1.0, f"{LOSS}: compute_grpo_outcome_advantage"),
    "algorithm.drop_zero_variance": (False, "verl has no filter of groups"),
    "algorithm.loss.kl_coefficient": (0.001, "actor.kl_loss_coef=0.001"),
    "algorithm.loss.kl_estimator": ("k3", "actor.kl_loss_type=low_var_kl"),
}
PUBLISHED: Mapping[str, Table] = {
    "s3": {
        **PPO,
        **sizes(120, 1, S3),
        **adamw("update.optim", 1e-6, 0, "actor lr_warmup_steps_ratio=0", S3),
        # int(0.01 x 1500) x 4
        **adamw("algorithm.value_optim", 1e-5, 60, "critic lr_warmup_steps_ratio=0.01, total_training_steps=1500", S3),
        "steps": (20, "checkpoint pat-jj/s3-8-3-3-20steps"),
        "temperature": (0.6, f"{S3}: rollout.temperature"),
        "update.mini_batches": (120 // 30, f"{S3}: train_batch_size / ppo_mini_batch_size"),
        "reward.kind": ("gain_beyond_rag", "2505.14146, section 3"),
        "reward.gain_mode": ("both", "s3, verl/utils/reward_score: use_utility, use_generation"),
        "reward.baseline_top_k": (3, "s3, scripts/precompute.sh: context cut before Doc 4"),
        "reward.document_cost": (0.0, "s3 has none"),
        "reward.search_cost": (0.0, "s3 has none"),
        "reward.malformed_penalty": (0.0, "s3 has none"),
        "checkpoints.every": (10, OURS),
    },
    "search_r1_ppo": {
        **PPO,
        **sizes(512, 1, f"{R1}/train_ppo.sh"),
        # int(0.285 x 1005) x 2 and int(0.015 x 1005) x 2
        **adamw("update.optim", 1e-6, 572, "actor lr_warmup_steps_ratio=0.285", f"{R1}/train_ppo.sh"),
        **adamw("algorithm.value_optim", 1e-5, 30, "critic lr_warmup_steps_ratio=0.015", f"{R1}/train_ppo.sh"),
        "steps": (1005, f"{R1}/train_ppo.sh: total_training_steps"),
        "temperature": (1.0, f"{R1}/train_ppo.sh: rollout.temperature"),
        "update.mini_batches": (512 // 256, f"{R1}/train_ppo.sh: train_batch_size / ppo_mini_batch_size"),
        "reward.kind": ("exact_match", "Search-R1, verl/utils/reward_score/qa_em.py"),
        "checkpoints.every": (100, f"{R1}/train_ppo.sh: save_freq"),
    },
    "search_r1_grpo": {
        **GRPO,
        **sizes(512, 5, f"{R1}/train_grpo.sh"),
        # int(0.285 x 1005) x 10
        **adamw("update.optim", 1e-6, 2860, "actor lr_warmup_steps_ratio=0.285", f"{R1}/train_grpo.sh"),
        "algorithm.loss.entropy_coefficient": (0.001, f"{OLD}: entropy_coeff"),
        "steps": (1005, f"{R1}/train_grpo.sh: total_training_steps"),
        "temperature": (1.0, f"{R1}/train_grpo.sh: rollout.temperature"),
        # its verl counts rollouts in a mini-batch, newer ones questions
        "update.mini_batches": (512 * 5 // 256, f"{R1}/train_grpo.sh: train_batch_size x n_agent / mini_batch_size"),
        "reward.kind": ("exact_match", "Search-R1, verl/utils/reward_score/qa_em.py"),
        "checkpoints.every": (100, f"{R1}/train_grpo.sh: save_freq"),
    },
    "verl_search": {
        **GRPO,
        **sizes(512, 5, VERL),
        # int(0.285 x 331) x 2
        **adamw("update.optim", 1e-6, 188, "actor lr_warmup_steps_ratio=0.285, total_epochs=1", VERL),
        "algorithm.loss.dual_clip": (3.0, f"{NEW}: clip_ratio_c"),
        "algorithm.loss.entropy_coefficient": (0.0, f"{VERL}: entropy_coeff"),
        "steps": (169_615 // 512, f"{VERL}: total_epochs=1 over NQ and HotpotQA"),
        "temperature": (1.0, f"{NEW}: rollout.temperature"),
        "update.mini_batches": (512 // 256, f"{VERL}: train_batch_size / ppo_mini_batch_size, both of questions"),
        "reward.kind": ("exact_match", "verl, verl/utils/reward_score/search_r1_like_qa_em.py"),
        "checkpoints.every": (100, f"{VERL}: save_freq"),
    },
}
ROWS = [(preset, name, *row) for preset, table in PUBLISHED.items() for name, row in table.items()]


def load(preset: str) -> RunConfig:
    baseline = ["reward.baseline_file=b.jsonl"] if preset == "s3" else []
    return load_run_config(None, [*NEEDED, f"preset={preset}", *baseline])


@pytest.mark.parametrize(("preset", "setting", "value", "source"), ROWS)
def test_a_preset_has_the_published_value(preset: str, setting: str, value: object, source: str) -> None:
    assert reduce(getattr, setting.split("."), load(preset)) == value, f"{preset}, {setting}: see {source}"


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_states_every_value_of_its_table_and_no_other(preset: str) -> None:
    # stated, not left to a default: a better default must not change a published run
    assert set(flatten(read(preset))) == set(PUBLISHED[preset])


@pytest.mark.parametrize("preset", PUBLISHED)
def test_what_is_chosen_differently_is_explained_in_the_file(preset: str) -> None:
    text = (PRESETS / f"{preset}.yaml").read_text()
    assert "# Where this differs on purpose:" in text
    for setting, (_, source) in PUBLISHED[preset].items():
        if source == OURS and setting != "algorithm.loss.old_policy":  # a bullet of the list explains that one
            name = setting.rpartition(".")[2]
            assert any(name in line and "#" in line for line in text.splitlines()), setting
    assert "The old policy of the ratio" in text


@pytest.mark.parametrize("command", [train, submit])
def test_the_help_of_the_commands_names_every_preset(command: Any) -> None:
    parser = CommandParser("searchrl", "")
    command.add_arguments(parser)
    (help_,) = [action.help or "" for action in parser._actions if "--preset" in action.option_strings]
    assert sorted(re.findall(r"\w+", help_.partition(":")[2].replace(" or ", " "))) == preset_names()


@pytest.mark.parametrize("preset", PUBLISHED)
def test_no_published_value_is_unused_by_its_run(preset: str, tmp_path: Any) -> None:
    # given as the user's own file, in which a setting that nothing reads is an error
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(read(preset)))
    baseline = ["reward.baseline_file=b.jsonl"] if preset == "s3" else []
    assert load_run_config(path, [*NEEDED, *baseline]) == load(preset)


def read(preset: str) -> Mapping[str, Any]:
    return yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())


def flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The full names of all settings."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
