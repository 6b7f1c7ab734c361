"""Complete runs in the test's process, with scripted services.

Delays change nothing in a synchronous run; stopped runs resume exactly; failures of services cost no reward; an engine
that ignores weights stops the run within a step; with learning rate 0 engine and learner stay equal; a diverged run
ends with an error and a checkpoint that loads.
"""

import asyncio
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import parquet

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Generation, Sampling
from searchrl.domain.answer import Answer
from searchrl.domain.passage import Passage
from searchrl.errors import ConfigurationError, InvalidRequest, ServiceError, TooLarge, Unavailable
from searchrl.platform.settings import merge
from searchrl.small_world.files import WARM_START_FOLDER
from services.trainer import wiring
from services.trainer.engines import torch_engine
from services.trainer.engines.base import EngineHealth, EngineOutOfDate
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.learner.reports import PublishedWeights
from services.trainer.learner.trained_model import TrainingDiverged
from services.trainer.metrics import LINE_GAUGES
from services.trainer.runs.run_state import Phase
from tests.fakes.small_run import QUESTIONS, WORLD, SmallRun, run_config, write_questions
from tests.fakes.small_world_services import SmallWorldGenerator, SmallWorldSearcher


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_delays_of_the_services_do_not_change_a_synchronous_run(tmp_path: Path) -> None:
    plain = await SmallRun(tmp_path / "plain").train()
    rng = random.Random(1)
    delayed = SmallRun(
        tmp_path / "delayed",
        searcher=SmallWorldSearcher(WORLD.passages, rng),
        generator=SmallWorldGenerator(rng),
    )
    await delayed.train()
    assert delayed.fingerprints == plain.fingerprints
    assert len(set(plain.fingerprints)) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "adapter"), [("ppo", "none"), ("grpo", "lora")])
async def test_two_ray_actors_train_the_same_run(tmp_path: Path, kind: str, adapter: str) -> None:
    """Not to the bit, as one actor does: two add two partial sums, which rounds differently."""
    pytest.importorskip("ray")
    if adapter == "lora":
        pytest.importorskip("peft")
    settings: dict[str, Any] = {
        "algorithm__kind": kind,
        "algorithm__loss__kl_coefficient": 0.01,
        "learner__adapter": {"kind": adapter},
    }
    plain = await SmallRun(tmp_path / "plain", steps=2, **settings).train()
    spread = await SmallRun(tmp_path / "spread", steps=2, learner__ranks=2, **settings).train()
    assert spread.fingerprints != plain.fingerprints
    for name in ("loss", "grad_norm", "entropy", "reward", "mismatch_kl", "kl_reference"):
        assert spread.lines[0][name] == pytest.approx(plain.lines[0][name], rel=1e-3, abs=1e-5), name
    run = tmp_path / "spread" / "run"
    assert not (run / "published").exists()
    # on the same machine without ranks, from what the ranks saved
    resumed = await SmallRun(tmp_path / "spread", steps=3, **settings).train(resume=True)
    assert resumed.service.status().step == 3
    assert (run / "final" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_killed_rank_ends_the_run_with_its_death_and_a_resume_loses_no_step(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run = SmallRun(tmp_path, steps=50, learner__ranks=2)
    running = asyncio.create_task(run.train())
    await until(lambda: run.service.status().step >= 1 or running.done())
    rank, *_ = (p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::LearnerRank"))
    rank.kill()
    with pytest.raises(Unavailable, match="a learner rank died"):
        await running
    done = len(run.lines)
    resumed = await SmallRun(tmp_path, steps=done + 1).train(resume=True)
    assert resumed.column("step") == list(range(1, done + 2))


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
async def test_a_run_with_an_adapter_resumes_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    """The engine samples from the merged weights, so it agrees with the learner."""
    pytest.importorskip("peft")
    settings: dict[str, Any] = {
        "algorithm__kind": kind,
        "algorithm__loss__kl_coefficient": 0.01,
        "learner__adapter": {"kind": "lora", "rank": 8},
    }
    whole = await SmallRun(tmp_path / "whole", **settings, steps=2).train()
    await SmallRun(tmp_path / "parts", **settings, steps=1).train()
    resumed = await SmallRun(tmp_path / "parts", **settings, steps=2).train(resume=True)
    assert resumed.fingerprints == whole.fingerprints
    assert len(set(whole.fingerprints)) == 2
    assert whole.column("logprob_mismatch") == pytest.approx([0, 0], abs=1e-5)
    assert whole.column("kl_reference")[1] > 0
    final = tmp_path / "whole" / "run" / "final"
    assert {path.name for path in (final / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


async def test_reinforce_trains_on_the_same_rollouts_with_other_weights_than_grpo(tmp_path: Path) -> None:
    grpo = await SmallRun(tmp_path / "grpo", steps=2).train()
    reinforce = await SmallRun(tmp_path / "reinforce", steps=2, algorithm__kind="reinforce").train()
    assert reinforce.column("reward")[0] == grpo.column("reward")[0]
    assert len(set(reinforce.fingerprints)) == 2
    assert reinforce.fingerprints != grpo.fingerprints


async def test_a_run_that_replaces_groups_is_resumed_with_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "algorithm": {"kind": "dapo", "max_sample_batches": 3},
        "rollouts__group_size": 2,
        "reward": {"document_cost": 0.0, "malformed_penalty": 0.0, "overlong": {"penalty": 0.0}},  # often equal
    }
    whole = await SmallRun(tmp_path / "whole", **settings, steps=3).train()
    await SmallRun(tmp_path / "parts", **settings, steps=1).train()
    resumed = await SmallRun(tmp_path / "parts", **settings, steps=3).train(resume=True)
    assert resumed.fingerprints == whole.fingerprints
    assert resumed.column("replaced_groups") == whole.column("replaced_groups")
    assert sum(whole.column("replaced_groups")) > 0


async def test_another_seed_is_another_run(tmp_path: Path) -> None:
    first = await SmallRun(tmp_path / "first", steps=2).train()
    second = await SmallRun(tmp_path / "second", steps=2, seed=1).train()
    assert first.fingerprints != second.fingerprints


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_stopped_and_resumed_run_continues_where_it_was(tmp_path: Path, staleness: int) -> None:
    settings: dict[str, Any] = {"rollouts__max_staleness": staleness, "update__mini_batches": 2 - staleness}
    whole = await SmallRun(tmp_path / "whole", **settings).train()
    first = SmallRun(tmp_path / "parts", **settings)
    running = asyncio.create_task(first.train())
    await until(lambda: first.service.status().step >= 1)
    first.service.stop()
    await running
    assert len(first.lines) < 3
    resumed = await SmallRun(tmp_path / "parts", **settings).train(resume=True)
    assert [line["step"] for line in resumed.lines] == [1, 2, 3]
    assert max(resumed.column("staleness")) <= staleness
    if not staleness:
        assert resumed.fingerprints == whole.fingerprints


async def test_a_stopped_run_with_a_critic_resumes_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"algorithm__kind": "ppo", "algorithm__gae__kl_coefficient": 0.01, "steps": 2}
    whole = await SmallRun(tmp_path / "whole", **settings).train()
    await SmallRun(tmp_path / "parts", **{**settings, "steps": 1}).train()
    resumed = await SmallRun(tmp_path / "parts", **settings).train(resume=True)
    assert resumed.fingerprints == whole.fingerprints
    assert len(set(whole.fingerprints)) == 2
    for line in resumed.lines:
        assert LINE_GAUGES.keys() <= line.keys()  # a gauge without a number of its name would stay at 0
        assert line["value_loss"] > 0 and line["value_grad_norm"] > 0 and line["value_tokens"] > 0
        assert line["value_skipped_steps"] == 0 and line["value_explained_variance"] <= 1
        assert line["importance_ratio"] == pytest.approx(1.0, abs=0.1) and line["micro_batches"] > 0
    assert (tmp_path / "parts" / "run" / "checkpoints" / "step_2" / "critic").is_dir()


async def test_one_failing_search_costs_one_rollout_a_retry_and_no_reward(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, steps=1)
    run.searcher.failures = [Unavailable("503")]
    await run.train()
    assert run.column("infra_failures") == [0]
    assert run.registry.get_sample_value(*failures("rollout")) == 1
    plain = await SmallRun(tmp_path / "plain", steps=1).train()
    assert run.fingerprints == plain.fingerprints


STATES = ("trained", "zero_variance", "unscorable", "underfilled")
KEEP_TRAJECTORIES = {"trackers": [], "trajectories_every": 1}


def trained_rollouts(folder: Path) -> list[tuple[int, int, int, str]]:
    """Step, group, index and question of every trained rollout."""
    files = sorted((folder / "run" / "trajectories").glob("*.parquet"))
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    return [(row["step"], row["group_id"], row["rollout_index"], row["question_id"]) for row in rows]


def failures(service: str) -> tuple[str, dict[str, str]]:
    return "searchrl_trainer_infra_failures_total", {"service": service, "kind": "unavailable"}


@pytest.mark.parametrize("which", ["searcher", "generator"])
async def test_in_an_outage_no_step_is_taken_and_afterwards_no_task_is_lost(tmp_path: Path, which: str) -> None:
    run = SmallRun(tmp_path, rollouts__infra_retries=0, logging=KEEP_TRAJECTORIES)
    service = getattr(run, which)
    service.down = Unavailable("down")
    running = asyncio.create_task(run.train())
    breaker = run.service._loop._orchestrator._breaker  # type: ignore[attr-defined]
    await until(lambda: breaker.outages == 1 and breaker.is_open)
    assert run.lines == [] and not running.done()
    service.down = None
    await running
    await SmallRun(tmp_path / "plain", logging=KEEP_TRAJECTORIES).train()
    assert trained_rollouts(tmp_path) == trained_rollouts(tmp_path / "plain")
    assert len(set(trained_rollouts(tmp_path))) == 24
    assert run.column("rollouts") == [8, 8, 8]
    # in the first step, rollouts under way when the service returned may have failed next to others that did not
    assert run.column("infra_failures")[1:] == [0, 0]


class RefusingGenerator(SmallWorldGenerator):
    """Refuses some questions permanently."""

    def __init__(self, refused: Mapping[str, ServiceError]) -> None:
        super().__init__()
        self._refused = refused

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        if question in self._refused:
            raise self._refused[question]
        return await super().answer_from_context(question, passages)


async def test_questions_that_can_never_be_scored_are_left_out_and_cost_no_restart(tmp_path: Path) -> None:
    """One exceeds the LLM's context, one gets unreadable verdicts; one that exceeds the searcher's is still trained."""
    too_large, unreadable, trained = QUESTIONS[:3]
    overflowing = replace(trained, id="overflowing", text=" ".join([trained.text] * 80))
    write_questions(tmp_path / "questions.jsonl", (too_large, unreadable, trained, overflowing))
    refused = {
        too_large.generator_text: TooLarge("the documents are over the LLM's context"),
        unreadable.generator_text: InvalidRequest("the judge's replies cannot be read"),
    }
    run = await SmallRun(tmp_path, steps=2, generator=RefusingGenerator(refused), logging=KEEP_TRAJECTORIES).train()
    groups = {
        state: run.registry.get_sample_value("searchrl_trainer_groups_total", {"state": state}) for state in STATES
    }
    assert groups["unscorable"] == 2 and groups["underfilled"] is None
    assert {question for _, _, _, question in trained_rollouts(tmp_path)} == {trained.id, overflowing.id}
    checkpoint = json.loads((run.folder / "checkpoints" / "step_2" / "manifest.json").read_text())
    assert checkpoint["metadata"]["orchestrator"]["left_out"].keys() == {too_large.id, unreadable.id}


async def test_a_run_that_is_to_stop_in_an_outage_ends_with_a_checkpoint_and_continues_later(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, rollouts__infra_retries=0)
    run.searcher.down = Unavailable("down")
    running = asyncio.create_task(run.train())
    breaker = run.service._loop._orchestrator._breaker  # type: ignore[attr-defined]
    await until(lambda: breaker.is_open)
    run.service.stop()
    await running
    assert run.service.status().phase is Phase.FINISHED
    resumed = await SmallRun(tmp_path).train(resume=True)
    assert resumed.fingerprints == (await SmallRun(tmp_path / "plain").train()).fingerprints


class DeafEngine(TorchEngine):
    """Ignores new weights; for what ``lies_about`` names (health, tokens), it reports the version that it was given."""

    lies_about: tuple[str, ...] = ()
    claimed = EngineHealth(0, "")

    async def load_weights(self, weights: PublishedWeights) -> None:
        if weights.version == 0:
            await super().load_weights(weights)
        DeafEngine.claimed = EngineHealth(weights.version, weights.fingerprint)

    async def health(self) -> EngineHealth:
        return DeafEngine.claimed if "health" in self.lies_about else await super().health()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        generation = await super().generate(prompt_ids, sampling, rollout_id)
        if "tokens" not in self.lies_about:
            return generation
        return replace(generation, versions=(DeafEngine.claimed.version,) * len(generation.ids))


@pytest.mark.parametrize(
    ("lies_about", "sentence"),
    [
        ((), "serves version 0"),
        (("health",), "samples tokens of version 0 although it was given version 1"),
        (("health", "tokens"), "does not sample from the published weights"),
    ],
)
async def test_an_engine_that_ignores_weights_stops_the_run_within_a_step(
    tmp_path: Path, monkeypatch, lies_about: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setattr(torch_engine, "TorchEngine", DeafEngine)
    monkeypatch.setattr(DeafEngine, "lies_about", lies_about)
    run = SmallRun(tmp_path, steps=4, update__optim__learning_rate=0.02)
    with pytest.raises(EngineOutOfDate, match=sentence):
        await run.train()
    assert run.service.status().step == 1
    assert sentence in run.service.status().error


async def test_without_a_learning_rate_engine_and_learner_stay_together(tmp_path: Path) -> None:
    run = await SmallRun(tmp_path, steps=6, update__optim__learning_rate=0.0).train()
    assert len(set(run.fingerprints)) == 1
    assert max(run.column("logprob_mismatch")) < 1e-5
    assert max(abs(value) for value in run.column("mismatch_kl")) < 1e-6


async def test_a_diverged_run_ends_with_an_error_and_its_last_checkpoint_loads(tmp_path: Path, monkeypatch) -> None:
    from services.trainer.algorithms import grpo

    poisoned: Iterator[float] = iter([1.0, *[float("nan")] * 10])
    original = grpo.group_rows

    def rows(groups, kind, scale, *rest):
        return original(groups, kind, scale * next(poisoned), *rest)

    monkeypatch.setattr(grpo, "group_rows", rows)
    run = SmallRun(tmp_path, steps=6, rollouts__truncated="train")
    with pytest.raises(TrainingDiverged, match="not finite 3 times in a row"):
        await run.train()
    state = run.service.status()
    assert state.phase is Phase.FAILED and "lower learning rate" in state.error
    assert sum(run.column("skipped_steps")) >= 1
    monkeypatch.undo()
    resumed = await SmallRun(tmp_path, steps=state.saved_step + 1).train(resume=True)
    assert resumed.service.status().phase is Phase.FINISHED


async def test_rates_lengths_and_addresses_may_change_and_are_recorded(tmp_path: Path) -> None:
    await SmallRun(tmp_path, steps=1).train()
    changed = SmallRun(tmp_path, steps=2, update__optim__learning_rate=1e-4, services__retriever="other:1")
    await changed.train(resume=True)
    assert "other:1" in (tmp_path / "run" / "run.yaml").read_text()
    assert [line["step"] for line in changed.lines] == [1, 2]


async def test_the_exported_searcher_has_the_temperature_of_its_training(tmp_path: Path) -> None:
    await SmallRun(tmp_path, steps=1, temperature=0.5).train()
    exported = (tmp_path / "run" / "final" / "searcher.json").read_text()
    assert SearcherProfile.from_json(exported).temperature == 0.5


@pytest.mark.parametrize("kind", ["exact_match", "search_r1_format"])
def test_a_reward_of_answers_is_refused_for_a_searcher_that_gives_none(tmp_path: Path, kind: str) -> None:
    """The small world's searcher has protocol s3, where the generator answers: every reward would be 0."""
    config = run_config(tmp_path, reward={"kind": kind})
    sentence = f"reward.kind {kind} scores the searcher's own answer, and a searcher of protocol s3 gives none"
    with pytest.raises(ConfigurationError, match=sentence):
        wiring.read_profile(config)


@pytest.mark.parametrize(
    ("given", "written", "sentence"),
    [
        ({}, {"limits": {"max_searches": 0}, "initial_top_k": 0}, "the generator would answer without documents"),
        ({"reward__overlong": {"penalty": 1.0, "max_tokens": 10**6}}, {}, "no rollout would be penalized"),
    ],
)
def test_a_searcher_whose_limits_leave_nothing_to_learn_is_refused(
    tmp_path: Path, given: dict[str, Any], written: dict[str, Any], sentence: str
) -> None:
    model = shutil.copytree(WARM_START_FOLDER, tmp_path / "model")
    profile = merge(json.loads((model / "searcher.json").read_text()), written)
    (model / "searcher.json").write_text(json.dumps(profile))
    with pytest.raises(ConfigurationError, match=sentence):
        wiring.read_profile(run_config(tmp_path, model=str(model), **given))


async def test_pause_checkpoint_and_resume_take_effect_between_steps(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, steps=3, checkpoints__every=0)
    run.service.status().phase = Phase.RUNNING
    run.service.pause()
    running = asyncio.create_task(run.train())
    folder, step = await run.service.save_checkpoint()
    assert (folder.name, step) == ("step_0", 0)
    again = await asyncio.gather(run.service.save_checkpoint(), run.service.save_checkpoint())
    assert [step for _, step in again] == [0, 0]
    assert run.lines == []
    run.service.resume()
    await running
    assert run.service.status().step == 3


async def test_a_resume_that_arrives_while_a_paused_run_saves_is_not_lost(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, steps=1, checkpoints__every=0)
    run.service.status().phase = Phase.RUNNING
    run.service.pause()
    running = asyncio.create_task(run.train())
    saving = asyncio.create_task(run.service.save_checkpoint())
    await until(lambda: (run.folder / "checkpoints" / "step_0.tmp").exists() or saving.done())
    run.service.resume()
    await saving
    await asyncio.wait_for(running, 60)
