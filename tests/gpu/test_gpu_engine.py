"""The in-process engine samples on the CPU, whatever the learner's device: the two must agree about every token."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from searchrl.agent.types import Generation, Sampling
from services.trainer.algorithms.base import UpdateSettings, update_policy
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.engines.vllm.ipc_transfer import SharedBuffer, split_into_parts
from services.trainer.learner.learner import Learner
from services.trainer.learner.model_folder import load_language_model
from services.trainer.learner.optimizers import OptimSettings
from services.trainer.learner.reports import PublishedWeights
from services.trainer.learner.train_batch import RowKey, TrainBatch, TrainRow
from services.trainer.losses.policy_losses import LossSettings
from tests.fakes.other_process import read_elsewhere
from tests.fakes.tiny_policy import NumberedWords, random_ids
from tests.fakes.train_rows import random_rows

pytestmark = pytest.mark.gpu
PROMPTS = [random_ids(5 + number, number) for number in range(6)]


def sampled(folder: Path, temperature: float, pushed: PublishedWeights | None = None) -> list[Generation]:
    """One generation per prompt, by an engine of its own; after a push of weights where they are given."""

    async def sample() -> list[Generation]:
        engine = TorchEngine(load_language_model(folder, torch.float32), NumberedWords())
        try:
            if pushed is not None:
                await engine.load_weights(pushed)
                state = await engine.health()
                assert (state.version, state.fingerprint) == (pushed.version, pushed.fingerprint)
            calls = [
                engine.generate(prompt, Sampling(temperature=temperature, max_tokens=24, seed=number), "")
                for number, prompt in enumerate(PROMPTS)
            ]
            return list(await asyncio.gather(*calls))
        finally:
            await engine.close()

    return asyncio.run(sample())


def as_rows(generations: Sequence[Generation], temperature: float) -> list[TrainRow]:
    rows: list[TrainRow] = []
    for number, (prompt, generation) in enumerate(zip(PROMPTS, generations, strict=True)):
        mask = np.array([False] * len(prompt) + [True] * len(generation.ids))
        logprobs = np.array([0.0] * len(prompt) + list(generation.logprobs), dtype=np.float32)
        ids = np.array([*prompt, *generation.ids])
        others = {
            "versions": np.where(mask, 0, -1),
            "kinds": np.zeros_like(ids),
            "advantages": np.zeros_like(logprobs),
        }
        rows.append(TrainRow(RowKey(number, 0), ids, mask, logprobs, temperature=temperature, **others))
    return rows


def distance(learner: Learner, rows: Sequence[TrainRow]) -> float:
    """Largest difference of the engine's log-probabilities from the learner's, in nats."""
    found = learner.logprobs(rows)
    return max(float(np.abs(a - row.behavior_logprobs)[row.mask].max()) for row, a in zip(rows, found, strict=True))


def test_greedy_tokens_are_the_most_likely_ones_of_the_learners_model(
    family_folder: Path, device: str, learner_on
) -> None:
    model = learner_on(family_folder, device).model
    for prompt, generation in zip(PROMPTS, sampled(family_folder, temperature=0.0), strict=True):
        ids = torch.tensor([[*prompt, *generation.ids]], device=device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(generation.ids)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_log_probabilities_are_the_learners(
    family_folder: Path, device: str, temperature: float, learner_on
) -> None:
    rows = as_rows(sampled(family_folder, temperature), temperature)
    assert sum(row.trainable_tokens for row in rows) > 30
    assert distance(learner_on(family_folder, device), rows) < 1e-3


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_weights_pushed_from_the_learner_are_those_that_the_engine_samples_with(
    family_folder: Path, device: str, dtype: str, allowed: float, learner_on
) -> None:
    learner = learner_on(family_folder, device, dtype=dtype)
    loss = LossSettings(policy="reinforce")
    update_policy(learner, TrainBatch.of(random_rows(8)), loss, UpdateSettings(optim=OptimSettings(learning_rate=0.02)))
    before = as_rows(sampled(family_folder, 1.0), 1.0)
    after = as_rows(sampled(family_folder, 1.0, learner.publish(7)), 1.0)
    assert distance(learner, after) < allowed < distance(learner, before)


def test_another_process_reads_the_weights_in_memory_that_the_trainer_shares(device: str) -> None:
    tensors = {"a": torch.arange(6, dtype=torch.bfloat16), "b": torch.tensor([1.5, -2.0], device=device)}
    (part,) = split_into_parts(tensors, 1 << 12)
    buffer = SharedBuffer(1 << 12, torch.device(device), workers=2)
    for handle in (*buffer.handles, buffer.handles[0]):  # the first again, as by a server that was restarted
        buffer.fill(tensors, part)
        place, content = read_elsewhere(handle)
        assert place == device
        for name, start in zip(part["names"], part["offsets"], strict=True):
            expected = tensors[name].cpu().view(torch.uint8).tolist()
            assert content[start : start + len(expected)] == expected
        tensors["b"] = -tensors["b"]
