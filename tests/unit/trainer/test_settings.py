"""The run file: presets, precedence, and how a wrong or contradictory one is refused."""

from pathlib import Path

import pytest
import yaml

from searchrl.errors import ConfigurationError
from services.trainer.settings import RunConfig, describe_plan, load_run_config, preset_names
from services.trainer.wiring import dump_config

NEEDED = ["model=m", "questions=q.jsonl", "output=runs/first"]
VLLM = ["reward.kind=exact_match", "engine.kind=vllm"]
PPO = ["reward.kind=exact_match", "algorithm.kind=ppo"]


def loaded(*assignments: str) -> RunConfig:
    return load_run_config(None, [*NEEDED, *assignments])


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("stpes=3", "unknown setting 'stpes': did you mean 'steps'?"),
        ("rollouts.group_sise=4", "unknown setting under 'rollouts' 'group_sise': did you mean 'group_size'?"),
        (
            "update.optim.learn_rate=1",
            "unknown setting under 'update.optim' 'learn_rate': did you mean 'learning_rate'?",
        ),
        ("preset=smal_world", "unknown preset 'smal_world': did you mean 'small_world'?"),
        ("algorithm.kind=grpoo", "unknown algorithm.kind 'grpoo': did you mean 'grpo'?"),
        ("algorithm.scal=2", "unknown setting under 'algorithm' 'scal': did you mean 'scale'?"),
        ("algorithm.scale=0", "setting 'algorithm.scale': Input should be greater than 0"),
        ("algorithm.loss.clip_low=-1", "setting 'algorithm.loss.clip_low': Input should be greater than or equal to 0"),
        ("reward.kind=exactmatch", "unknown reward.kind 'exactmatch': did you mean 'exact_match'?"),
        ("steps=0", "setting 'steps': Input should be greater than 0"),
        ("steps=[", "--set steps: '[' is not a valid YAML value"),
        ("steps", "--set takes name=value, got 'steps'"),
    ],
)
def test_a_wrong_name_or_value_is_refused_in_one_sentence_with_the_nearest_known_name(
    assignment: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded("reward.kind=exact_match", assignment) if "=" in assignment else loaded(assignment)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignments", "uses_ray"),
    [([], False), (["learner.ranks=1"], True), (["engine.replicas=2"], False), (["engine.placement=ray"], True)],
)
def test_a_run_with_ranks_or_servers_in_actors_uses_ray(assignments: list[str], uses_ray: bool) -> None:
    assert loaded(*VLLM, *assignments).uses_ray == uses_ray


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["reward.kind=generation_accuracy"], "needs services.generator"),
        (["reward.kind=gain_beyond_rag", "services.generator=g:1"], "setting 'reward.baseline_file': Field required"),
        (["reward.kind=exact_match", "rollouts.group_size=1"], "group_size must be at least 2"),
        (["reward.kind=exact_match", "learner.offload=cpu"], "moves weights out of a GPU, and learner.device is cpu"),
        (["reward.kind=exact_match", "engine.kind=sglang"], "unknown engine.kind 'sglang'"),
        (["reward.kind=exact_match", "engine.replicas=2"], r"engine.replicas belongs to engine.kind vllm"),
        (["reward.kind=exact_match", "engine.kind=vllm", "engine.min_replicas=2"], "is more than the 1 servers"),
        (
            ["reward.kind=exact_match", "engine.kind=vllm", "engine.weight_transfer.backend=lora_adapter"],
            r"learner\.adapter\.kind none trains every weight: set learner\.adapter\.kind to lora or qlora",
        ),
        (
            [*VLLM, "engine.gpus_per_replica=2"],
            "gpus_per_replica is for placement ray: set server.tensor_parallel_size",
        ),
        (
            [*VLLM, "engine.placement=ray", "engine.urls=[http://a:1]"],
            "placement ray starts servers, and urls names running ones",
        ),
        (
            [*VLLM, "engine.placement=ray", "engine.server.tensor_parallel_size=2"],
            "server.tensor_parallel_size follows from gpus_per_replica",
        ),
        ([*VLLM, "engine.placement=ray", "engine.server.cpu_kv_cache_gib=1"], "so exactly one must be 0"),
        ([*VLLM, "engine.placement=ray", "engine.gpus_per_replica=0"], "so exactly one must be 0"),
        (
            [
                *("reward.kind=exact_match", "engine.kind=vllm", "learner.adapter.kind=lora"),
                *("engine.weight_transfer.backend=lora_adapter", "engine.running_turns=continue"),
            ],
            "a turn ends under the adapter that it started with: leave it out",
        ),
        (
            ["reward.kind=exact_match", "algorithm.gae.kl_coefficient=5"],
            r"algorithm\.gae belongs to algorithm\.kind ppo, and this run\'s is grpo",
        ),
        (
            ["reward.kind=exact_match", "reward.document_cost=0.1"],
            r"document_cost belongs to reward.kind generation",
        ),
        (["services.generator=g:1", "reward.gain_mode=both"], r"gain_mode belongs to reward.kind gain_beyond_rag"),
        (
            ["preset=s3", "services.generator=g:1", "reward.baseline_file=b", "algorithm.advantage=leave_one_out"],
            r"algorithm\.advantage belongs to algorithm\.kind grpo, .* or reinforce, and this run\'s is ppo",
        ),
        (
            ["reward.kind=exact_match", "rollouts.max_staleness=1", "algorithm.loss.old_policy=behavior"],
            "algorithm.loss.old_policy proximal",
        ),
        (["reward.kind=exact_match", "reward.baseline_top_k=3"], r"baseline_top_k belongs to reward.kind gain_beyond"),
        (
            ["reward.kind=exact_match", "algorithm.kind=reinforce", "algorithm.loss.clip_low=0.1"],
            r"clip_low has no effect: algorithm.loss.policy is reinforce",
        ),
        (
            ["reward.kind=exact_match", "algorithm.kind=cispo", "algorithm.loss.dual_clip=3"],
            r"dual_clip has no effect: algorithm.loss.policy is cispo",
        ),
        (
            ["reward.kind=exact_match", "algorithm.loss.importance_ratio_cap=3"],
            r"importance_ratio_cap has no effect: .*old_policy is beh",
        ),
        (
            ["reward.kind=exact_match", "algorithm.loss.kl_estimator=k3"],
            r"kl_estimator has no effect: .*coefficient is 0",
        ),
        (
            ["reward.kind=exact_match", "algorithm.max_sample_batches=2"],
            r"max_sample_batches has no effect: algorithm.dynamic_sampling is false",
        ),
        (
            ["reward.kind=exact_match", "reward.overlong.max_tokens=200"],
            r"overlong.max_tokens has no effect: reward.overlong.penalty is 0",
        ),
        (["reward.kind=exact_match", "curriculum.min_active=0.8"], r"min_active has no effect: curriculum.window is 0"),
        (["reward.kind=exact_match", "algorithm.loss.sequence_ratio_high=0.5"], "nothing would be trained"),
        (["reward.kind=exact_match", "algorithm.loss.sequence_ratio_low=1.5"], "nothing would be trained"),
        (["services.generator=g:1", "reward.document_cost=1"], "document_cost .* worth no more than a failure"),
        (["reward.kind=exact_match", "algorithm.kind=rloo", "reward.search_gain=0.3"], "would reach no turn"),
        (["services.generator=g:1", "reward.search_cost=2"], "search_cost .* worth no more than a failure"),
        (
            [
                *("reward.kind=exact_match", "algorithm.kind=reinforce_plus_plus"),
                *("rollouts.groups_per_step=1", "rollouts.group_size=1"),
            ],
            "with one of them every advantage is 0",
        ),
        (["reward.kind=exact_match", "algorithm.loss.llds_threshold=1"], r"llds_threshold has no effect"),
        (
            [*PPO, "algorithm.gae.whiten=false", "algorithm.gae.min_std=0.2"],
            r"gae\.min_std has no effect: algorithm\.gae\.whiten is false",
        ),
        (
            [*PPO, "algorithm.value_loss.aggregation_constant=100"],
            r"value_loss\.aggregation_constant has no effect: .*aggregation is token_mean",
        ),
        ([*PPO, "algorithm.value_loss.aggregation=seq_sum_const"], "value_loss.* needs aggregation_constant"),
        (["reward.kind=exact_match", "update.optim.muon_momentum=0.5"], r"muon_momentum has no effect: .*is adamw"),
        (["reward.kind=exact_match", "algorithm.loss.aggregation=seq_sum_const"], "aggregation_constant"),
        (["reward.kind=exact_match", "algorithm.loss.policy=gspo"], r"algorithm\.loss\.policy.*should be 'ppo'"),
        (["reward.kind=exact_match", "update.optim.schedule.kind=cosine"], "needs total_steps"),
        (["reward.kind=exact_match", "logging.trackers=[wand]"], "unknown tracker 'wand': did you mean 'wandb'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(assignments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        loaded(*assignments)


@pytest.mark.parametrize(
    ("assignments", "old_policy"),
    [
        ([], "behavior"),
        (["rollouts.max_staleness=1"], "proximal"),
        (["rollouts.max_staleness=1", "update.mini_batches=1"], "behavior"),
        (["algorithm.loss.old_policy=proximal"], "proximal"),
    ],
)
def test_stale_rollouts_and_several_steps_are_corrected_by_default(assignments: list[str], old_policy: str) -> None:
    loss = loaded("reward.kind=exact_match", *assignments).algorithm.loss
    assert (loss.old_policy, loss.importance_ratio_cap) == (old_policy, 2.0)
    assert (loss.sequence_ratio_low, loss.sequence_ratio_high) == (0.1, 10.0)


@pytest.mark.parametrize(
    ("assignments", "penalty"),
    [([], 0.0), (["algorithm.kind=dapo"], 1.0), (["algorithm.kind=dapo", "reward.overlong.penalty=0"], 0.0)],
)
def test_only_dapo_penalizes_long_rollouts_by_default(assignments: list[str], penalty: float) -> None:
    assert loaded("reward.kind=exact_match", *assignments).overlong_penalty == penalty


def test_the_file_wins_over_the_preset_and_assignments_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"preset": "small_world", "steps": 5, "rollouts": {"group_size": 6}}))
    config = load_run_config(path, [*NEEDED, "services.generator=g:1", "steps=7"])
    assert (config.steps, config.rollouts.group_size, config.rollouts.groups_per_step) == (7, 6, 24)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_a_complete_run_but_for_its_files_and_addresses(preset: str) -> None:
    given = [f"preset={preset}", "services.generator=g:1"]
    config = loaded(*given, *(["reward.baseline_file=b.jsonl"] if preset == "s3" else []))
    plan = describe_plan(config)
    assert f"{config.rollouts.groups_per_step} questions x {config.rollouts.group_size} rollouts" in plan
    assert config.rollouts.max_staleness == 0 and "strictly synchronous" in plan


def test_the_text_in_the_run_folder_loads_as_the_same_run(tmp_path: Path) -> None:
    config = loaded(
        "preset=small_world",
        "services.generator=g:1",
        "update.optim.betas=[0.8, 0.9]",
        "algorithm.loss.old_policy=proximal",
        "algorithm.loss.importance_ratio_cap=.inf",
        "logging.trackers=wandb",
        "logging.wandb.key_file=/keys/wandb",
    )
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_run_config(path) == config


@pytest.mark.parametrize(
    ("text", "sentence"), [("a: [", "is not valid YAML"), ("- 1\n", "expected a mapping"), (None, "cannot read")]
)
def test_a_file_that_is_no_run_file_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence):
        load_run_config(path)
