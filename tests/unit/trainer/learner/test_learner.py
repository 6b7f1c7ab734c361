"""The steps of the learner: forward_backward and optim_step, and the devices they run on.

The gradient does not depend on micro-batches, packing, padding or the order of rows; untrained positions reach no loss,
gradient or metric; several mini-batches measure against one old policy; non-finite gradients are skipped.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from searchrl.errors import ConfigurationError
from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.reports import LossReport, OptimReport
from services.trainer.learner.scoring import PolicyModel
from services.trainer.learner.train_batch import FloatArray, TrainBatch, TrainRow
from services.trainer.learner.trained_model import TrainingDiverged
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.train_rows import VOCABULARY, random_rows


def learner_of(folder: Path, **settings) -> Learner:
    return Learner.from_folder(folder, LearnerSettings(**settings), 0)


def gradient_of(learner: Learner, batches: list[TrainBatch], loss: LossSettings) -> torch.Tensor:
    for batch in batches:
        learner.forward_backward(batch, loss)
    return torch.cat([p.grad.reshape(-1) for p in learner.model.parameters() if p.grad is not None])


def with_own_logprobs(learner: Learner, rows: list[TrainRow]) -> list[TrainRow]:
    arrays = learner.logprobs(rows)
    return [replace(row, behavior_logprobs=array) for row, array in zip(rows, arrays, strict=True)]


LOSSES = [
    LossSettings(),
    LossSettings(policy="gspo", clip_low=0.2, clip_high=0.28),
    LossSettings(policy="cispo", aggregation="prompt_mean"),
    LossSettings(policy="reinforce", aggregation="seq_sum_const", aggregation_constant=50.0, entropy_coefficient=0.01),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.policy}-{loss.reduction}")
@pytest.mark.parametrize("settings", [{"token_budget": 1}, {"token_budget": 150}, {"packed": True}])
def test_the_gradient_does_not_depend_on_micro_batches_or_packing(model_folder, loss, settings) -> None:
    batch = TrainBatch.of(random_rows(8))
    whole = gradient_of(learner_of(model_folder), [batch], loss)
    other = gradient_of(learner_of(model_folder, **settings), [batch], loss)
    assert whole.abs().max() > 1e-4
    assert torch.allclose(whole, other, atol=1e-5)


def test_shares_of_a_batch_accumulate_to_its_gradient(model_folder: Path) -> None:
    batch = TrainBatch.of(random_rows(8))
    shares = [batch.with_rows(batch.rows[:3]), batch.with_rows(batch.rows[3:])]
    whole = gradient_of(learner_of(model_folder), [batch], LossSettings())
    assert torch.allclose(whole, gradient_of(learner_of(model_folder), shares, LossSettings()), atol=1e-5)


def test_padding_to_twice_the_width_leaves_the_constant_reduction_unchanged(model_folder: Path) -> None:
    loss = LossSettings(aggregation="seq_sum_const", aggregation_constant=32.0)
    rows = random_rows(4, longest=30)
    wide = replace(random_rows(1, seed=9, shortest=59, longest=60)[0], key=rows[0].key._replace(group_id=99))
    wide = replace(wide, advantages=np.zeros_like(wide.advantages))
    narrow_loss = learner_of(model_folder).forward_backward(TrainBatch.of(rows), loss).loss
    # a row of advantage 0, kept in the pass by an entropy term of weight 0+, widens the rectangle to 59
    counted = TrainBatch.of(rows).with_rows([*rows, replace(wide, weight=0.0)])
    padded = learner_of(model_folder)._micro_step(counted.rows, counted, loss)
    assert padded.sums["padding_tokens"] > 100
    assert padded.loss == pytest.approx(narrow_loss, abs=1e-6)


def test_observations_and_padding_reach_no_loss_gradient_or_metric(model_folder: Path) -> None:
    """The result is the same to the bit, whatever is stored for untrained positions."""
    rows = random_rows(6)
    rng = np.random.default_rng(5)

    def spoil(row: TrainRow, array: np.ndarray) -> np.ndarray:
        return np.where(row.mask, array, rng.normal(0, 100, len(row))).astype(np.float32)

    spoiled = [
        replace(r, advantages=spoil(r, r.advantages), behavior_logprobs=spoil(r, r.behavior_logprobs)) for r in rows
    ]
    loss = LossSettings(policy="gspo", sequence_ratio_high=5.0)
    clean_learner, spoilt_learner = learner_of(model_folder), learner_of(model_folder)
    clean = clean_learner.forward_backward(TrainBatch.of(rows), loss)
    other = spoilt_learner.forward_backward(TrainBatch.of(spoiled), loss)
    assert clean == other
    for first, second in zip(clean_learner.model.parameters(), spoilt_learner.model.parameters(), strict=True):
        assert first.grad is not None and second.grad is not None
        assert torch.equal(first.grad, second.grad)


class ContextFreeModel(nn.Module):
    """Gives every position the same logits, so that two batches can differ only in what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCABULARY)
        self.head = nn.Linear(1, VOCABULARY, bias=False)
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(0))

    @property
    def base_model(self):
        return lambda input_ids, **_: SimpleNamespace(last_hidden_state=torch.ones(*input_ids.shape, 1))

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


@pytest.mark.parametrize("packed", [False, True])
def test_other_observations_change_nothing_where_the_policy_does_not_read_them(tmp_path: Path, packed) -> None:
    """If one observation token were trained or measured, its new id would have another log-probability."""
    loss = LossSettings(entropy_coefficient=0.01, kl_coefficient=0.1)
    rows = [replace(row, reference_logprobs=row.behavior_logprobs - 0.1) for row in random_rows(6)]
    rng = np.random.default_rng(1)
    others = [
        replace(row, token_ids=np.where(row.mask, row.token_ids, rng.integers(0, VOCABULARY, len(row)))) for row in rows
    ]
    results = []
    for each in (rows, others):
        policy = PolicyModel(ContextFreeModel())  # type: ignore[arg-type]
        learner = Learner(policy, tmp_path, LearnerSettings(packed=packed))
        report = learner.forward_backward(TrainBatch.of(each), loss)
        results.append((report, next(learner.model.parameters()).grad))
    assert any(not np.array_equal(row.token_ids, other.token_ids) for row, other in zip(rows, others, strict=True))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1]) and results[0][1].abs().max() > 0


def test_tokens_after_the_last_action_change_nothing(model_folder: Path) -> None:
    row = random_rows(1, shortest=40)[0]
    mask = row.mask.copy()
    mask[-10:] = False
    mask[-11] = True
    row = replace(row, mask=mask, advantages=np.where(mask, np.float32(1), np.float32(0)))
    ids = row.token_ids.copy()
    ids[-10:] = (ids[-10:] + 7) % 40
    first = learner_of(model_folder).forward_backward(TrainBatch.of([row]), LossSettings())
    second = learner_of(model_folder).forward_backward(TrainBatch.of([replace(row, token_ids=ids)]), LossSettings())
    assert first == second


def test_a_masked_row_has_zero_gradient_but_its_group_is_trained(model_folder: Path) -> None:
    rows = random_rows(3)
    truncated = replace(rows[2], weight=0.0)
    with_masked = gradient_of(learner_of(model_folder), [TrainBatch.of([rows[0], rows[1], truncated])], LossSettings())
    without = gradient_of(learner_of(model_folder), [TrainBatch.of(rows[:2])], LossSettings())
    assert torch.equal(with_masked, without)


def test_rows_without_advantage_are_not_run_but_still_count_in_the_denominator(model_folder: Path) -> None:
    rows = random_rows(4)
    rows[0] = replace(rows[0], advantages=np.zeros_like(rows[0].advantages))
    batch = TrainBatch.of(rows)
    report = learner_of(model_folder).forward_backward(batch, LossSettings())
    assert report.sums["skipped_rows"] == 1.0
    assert report.sums["tokens"] == batch.denominators.tokens - rows[0].trainable_tokens
    kept = learner_of(model_folder).forward_backward(batch, LossSettings(llds_coefficient=1e-9))
    assert kept.sums["skipped_rows"] == 0.0
    assert kept.loss == pytest.approx(report.loss, abs=1e-6)


def test_the_sampler_itself_has_ratio_one_at_any_temperature(model_folder: Path) -> None:
    learner = learner_of(model_folder)
    rows = with_own_logprobs(learner, random_rows(6, temperature=0.6))
    metrics = learner.forward_backward(TrainBatch.of(rows), LossSettings()).metrics
    assert metrics["importance_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["mismatch_kl"] < 1e-6
    wrong = [replace(row, temperature=1.0) for row in rows]
    assert learner.forward_backward(TrainBatch.of(wrong), LossSettings()).metrics["mismatch_kl"] > 1e-4


@pytest.mark.parametrize("old_policy", ["behavior", "proximal"])
def test_all_mini_batches_measure_against_one_old_policy(model_folder: Path, old_policy) -> None:
    """Two passes over four mini-batches equal the same steps written out with one fixed old policy."""
    optim = OptimSettings(learning_rate=1e-2)
    loss = LossSettings(old_policy=old_policy, importance_ratio_cap=2.0)
    learner, manual = learner_of(model_folder), learner_of(model_folder)
    batch = TrainBatch.of(random_rows(8))
    update_policy(learner, batch, loss, UpdateSettings(optim=optim, mini_batches=4, epochs=2))
    fixed = manual.logprobs(batch.rows)
    rows = [replace(row, proximal_logprobs=array) for row, array in zip(batch.rows, fixed, strict=True)]
    for mini_batch in TrainBatch.of(rows).split(4) * 2:
        manual.forward_backward(mini_batch, loss)
        manual.optim_step(optim)
    assert learner.publish(1).fingerprint == manual.publish(1).fingerprint
    assert learner.steps == 8


def test_the_proximal_policy_must_be_given(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="proximal_logprobs"):
        learner_of(model_folder).forward_backward(TrainBatch.of(random_rows(2)), LossSettings(old_policy="proximal"))


def test_the_order_of_arrival_cannot_change_the_weights(model_folder: Path) -> None:
    rows = random_rows(12)
    prints = []
    for order in (range(12), np.random.default_rng(3).permutation(12)):
        learner = learner_of(model_folder, token_budget=200)
        update_policy(learner, TrainBatch.of([rows[index] for index in order]), LossSettings(), UpdateSettings())
        prints.append(learner.publish(1).fingerprint)
    assert prints[0] == prints[1]


def test_a_step_with_non_finite_gradients_is_skipped_counted_and_finally_fatal(model_folder: Path) -> None:
    learner = learner_of(model_folder)
    batch = TrainBatch.of(random_rows(2))
    spoiled = batch.with_rows([replace(row, advantages=row.advantages * np.float32("nan")) for row in batch.rows])
    before = learner.publish(0).fingerprint
    for expected in (1, 2):
        learner.forward_backward(spoiled, LossSettings())
        report = learner.optim_step(OptimSettings())
        assert (report.skipped, report.skipped_total, report.step) == (True, expected, 0)
    assert learner.publish(0).fingerprint == before
    learner.forward_backward(batch, LossSettings())
    assert learner.optim_step(OptimSettings()).skipped is False
    for _ in range(2):
        learner.forward_backward(spoiled, LossSettings())
        learner.optim_step(OptimSettings())
    learner.forward_backward(spoiled, LossSettings())
    with pytest.raises(TrainingDiverged, match="3 times in a row"):
        learner.optim_step(OptimSettings())


def test_a_step_without_any_trainable_row_changes_no_weights(model_folder: Path) -> None:
    learner = learner_of(model_folder)
    before = learner.publish(0).fingerprint
    learner.forward_backward(TrainBatch.of([]), LossSettings())
    assert learner.optim_step(OptimSettings()).grad_norm == 0.0
    assert learner.publish(0).fingerprint == before


def test_a_step_without_gradients_does_not_follow_the_momentum_of_earlier_ones(model_folder: Path) -> None:
    learner = learner_of(model_folder)
    settings = UpdateSettings(optim=OptimSettings(learning_rate=1e-2))
    update_policy(
        learner, TrainBatch.of(random_rows(4)), LossSettings(), settings
    )  # makes the optimizer's moments nonzero
    before, steps = learner.publish(0).fingerprint, learner.steps
    idle = [replace(row, advantages=np.zeros_like(row.advantages)) for row in random_rows(4)]
    report = update_policy(learner, TrainBatch.of(idle), LossSettings(), settings)
    assert [step.is_idle for step in report.optim] == [True, True]
    assert (learner.publish(0).fingerprint, learner.steps) == (before, steps)


def test_the_reported_loss_is_a_mean_and_does_not_grow_with_the_number_of_mini_batches() -> None:
    class Constant(Learner):
        """A learner whose loss is -0.5 for every mini-batch."""

        def __init__(self) -> None:
            """Without a model."""

        def forward_backward(self, batch: TrainBatch, loss: LossSettings) -> LossReport:
            return LossReport(-0.5, {"tokens": 3.0})

        def optim_step(self, settings: OptimSettings) -> OptimReport:
            return OptimReport(1, 1.0, 0.1)

        def logprobs(self, rows: Sequence[TrainRow]) -> list[FloatArray]:
            return []

    batch = TrainBatch.of(random_rows(8))
    once, often = (
        update_policy(Constant(), batch, LossSettings(), UpdateSettings(mini_batches=n, epochs=n)) for n in (1, 4)
    )
    assert (once.loss.loss, often.loss.loss) == (-0.5, -0.5)
    assert (once.loss.sums["tokens"], often.loss.sums["tokens"]) == (3.0, 16 * 3.0)


def test_a_sum_that_no_metric_shows_is_an_error() -> None:
    assert LossReport(0.0, {"tokens": 4.0, "clipped": 1.0}).metrics["clip_fraction"] == 0.25
    with pytest.raises(ValueError, match="reports surprise: name it in STEP_METRICS"):
        LossReport(0.0, {"surprise": 1.0})


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there_is_one_clear_sentence(model_folder: Path, device: str) -> None:
    if torch.cuda.device_count() > 0 and device == "cuda":
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigurationError, match="CUDA devices"):
        learner_of(model_folder, device=device)


def test_a_pass_that_does_not_fit_into_the_gpus_memory_names_the_settings_to_change(model_folder: Path) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    learner, batch = learner_of(model_folder, token_budget=2048), TrainBatch.of(random_rows(4))
    hook = learner.model.base_model.register_forward_pre_hook(refuse)
    for run in (lambda: learner.forward_backward(batch, LossSettings()), lambda: learner.logprobs(batch.rows)):
        with pytest.raises(ConfigurationError, match=r"4 rows of up to \d+ tokens.*learner.token_budget \(now 2048\)"):
            run()
    hook.remove()
    assert learner.forward_backward(batch, LossSettings()).sums["tokens"] > 0


@pytest.mark.parametrize("device", ["mars", "meta"])
def test_an_unknown_device_is_refused(model_folder: Path, device: str) -> None:
    with pytest.raises(ConfigurationError, match="use cpu, cuda or cuda:N"):
        learner_of(model_folder, device=device)
