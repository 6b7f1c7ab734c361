"""Supervised training: weights of tokens, order of rows, resume to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from searchrl.errors import ConfigurationError
from services.trainer.algorithms.sft import SftOptimSettings, SftReport, SftRun, SftSettings, TokenDemonstration
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.reports import OptimReport

SETTINGS = SftSettings(
    batch_rows=4,
    bucket_batches=2,
    mean_over="data_set",
    environment_weight=1.0,
    optim=SftOptimSettings(kind="muon", learning_rate=4e-3, muon_learning_rate=0.025, betas=(0.9, 0.98)),
    warmup_steps=2,
    final_fraction=0.05,
)


def demonstrations(count: int = 42) -> list[TokenDemonstration]:
    """Demonstrations of a random prompt followed by the prompt's first token three times."""
    rng = np.random.default_rng(0)
    made: list[TokenDemonstration] = []
    for _ in range(count):
        prompt = rng.integers(0, 20, int(rng.integers(3, 12))).tolist()
        made.append(TokenDemonstration([*prompt, *[prompt[0]] * 3], [False] * len(prompt) + [True] * 3))
    return made


def learner_of(folder: Path) -> Learner:
    return Learner.from_folder(folder, LearnerSettings(), 0)


def test_every_epoch_uses_each_demonstration_once_in_a_new_order(model_folder: Path) -> None:
    run = SftRun(learner_of(model_folder), demonstrations(), SETTINGS.model_copy(update={"epochs": 2.0}))
    assert run.total_steps == 22
    first = [int(index) for step in range(11) for index in run.indices_of(step)]
    second = [int(index) for step in range(11, 22) for index in run.indices_of(step)]
    assert sorted(first) == sorted(second) == list(range(42))
    assert first != second


def test_batches_hold_demonstrations_of_similar_length(model_folder: Path) -> None:
    made = demonstrations(64)
    run = SftRun(learner_of(model_folder), made, SETTINGS.model_copy(update={"bucket_batches": 16}))
    spreads = [np.ptp([len(made[index].token_ids) for index in run.indices_of(step)]) for step in range(16)]
    assert max(spreads) <= 2


def test_the_order_depends_on_the_seed_alone(model_folder: Path) -> None:
    def order(seed: int) -> list[int]:
        run = SftRun(learner_of(model_folder), demonstrations(), SETTINGS, seed)
        return [int(index) for step in range(10) for index in run.indices_of(step)]

    assert order(3) == order(3) != order(4)


def test_the_loss_is_constant_normalized_action_loss_plus_weighted_environment_loss(model_folder: Path) -> None:
    made = demonstrations(8)
    learner = learner_of(model_folder)
    run = SftRun(learner, made, SETTINGS.model_copy(update={"environment_weight": 0.5}))
    indices = run.indices_of(0)
    mean_actions = 3.0
    mean_others = float(np.mean([len(d.token_ids) for d in made])) - 3.0
    expected = 0.0
    for index in indices:
        ids = torch.tensor(made[index].token_ids)
        with torch.no_grad():
            scored = torch.log_softmax(learner.model(input_ids=ids[None]).logits[0, :-1], -1)
        nll = -scored.gather(1, ids[1:, None])[:, 0]
        action = torch.tensor(list(made[index].action_mask)[1:])
        expected += float(nll[action].sum()) / mean_actions + 0.5 * float(nll[~action].sum()) / mean_others
    seen: list[float] = []
    original = learner.forward_backward

    def noted(*given, **named):
        report = original(*given, **named)
        seen.append(report.loss)
        return report

    learner.forward_backward = noted
    run.run(1)
    assert seen[0] == pytest.approx(expected / len(indices), rel=1e-5)


def test_training_learns_to_copy_the_first_token(model_folder: Path) -> None:
    reports: list[SftReport] = []
    SftRun(learner_of(model_folder), demonstrations(64), SETTINGS.model_copy(update={"epochs": 12.0})).run(
        on_step=reports.append
    )
    # all 40 tokens equally likely give log(40) = 3.7; below 1 the right one has more than a third of the probability
    assert reports[0].action_nll > 3.0 and reports[-1].action_nll < 1.0
    assert reports[-1].optim.learning_rate < reports[5].optim.learning_rate
    assert [report.step for report in reports] == list(range(192))


def test_without_weight_on_the_environment_only_actions_are_trained(model_folder: Path) -> None:
    run = SftRun(learner_of(model_folder), demonstrations(), SETTINGS.model_copy(update={"environment_weight": 0.0}))
    report = run.run(1)
    assert report is not None
    assert report.environment_nll == 0.0 and report.action_nll > 3.0


def test_a_resumed_run_ends_with_the_same_weights_to_the_bit(model_folder: Path, tmp_path: Path) -> None:
    uninterrupted = learner_of(model_folder)
    SftRun(uninterrupted, demonstrations(), SETTINGS).run()
    half = learner_of(model_folder)
    SftRun(half, demonstrations(), SETTINGS).run(4)
    half.save(tmp_path / "state")
    resumed = learner_of(model_folder)
    resumed.load(tmp_path / "state")
    SftRun(resumed, demonstrations(), SETTINGS).run()
    assert resumed.steps == uninterrupted.steps == 11
    assert resumed.publish(1).fingerprint == uninterrupted.publish(1).fingerprint


def test_a_mean_over_the_batch_weighs_each_action_token_alike(model_folder: Path) -> None:
    made = [*demonstrations(3), TokenDemonstration([1, 2, 3, 4, 5, 6], [False, True, True, True, True, True])]
    run = SftRun(learner_of(model_folder), made, SftSettings(batch_rows=4))
    report = run.run(1)
    assert report is not None and report.rows == 4
    assert report.loss.sums["action_tokens"] == 3 * 3 + 5 and report.loss.sums["environment_tokens"] == 0
    assert report.loss.loss == pytest.approx(report.action_nll, rel=1e-6)


def test_few_demonstrations_make_one_small_step_and_none_are_refused(model_folder: Path) -> None:
    run = SftRun(learner_of(model_folder), demonstrations(3), SETTINGS)
    report = run.run()
    assert run.total_steps == 1 and report is not None and report.rows == 3
    with pytest.raises(ConfigurationError, match="got none"):
        SftRun(learner_of(model_folder), [], SETTINGS)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"environment_weight": 0.5}, "environment_weight needs mean_over data_set"),
        ({"optim": {"schedule": {"kind": "linear", "total_steps": 5}}}, "optim.schedule has no effect"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SftSettings.model_validate(values)


def test_a_model_that_has_nothing_to_learn_ends_the_training(model_folder: Path) -> None:
    learner: Any = learner_of(model_folder)
    learner.optim_step = lambda _settings: OptimReport(0, 0.0, 0.0, is_idle=True)
    with pytest.raises(ConfigurationError, match="step 1: every gradient is 0"):
        SftRun(learner, demonstrations(), SETTINGS).run()
