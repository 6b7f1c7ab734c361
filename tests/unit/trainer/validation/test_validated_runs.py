"""Complete runs with validations, in the test's process with scripted services.

A validation sees one version, changes no bit of the training, survives outages, stops and resumes, and equals the
evaluation of the exported model.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from searchrl.agent.types import Generation, Sampling
from searchrl.domain.answer import Answer
from searchrl.domain.passage import Passage
from searchrl.errors import ConfigurationError, TooLarge, Unavailable
from searchrl.statistics.paired_difference import paired_difference
from searchrl.storage.artifact_manifest import read_artifact
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.engines import torch_engine
from services.trainer.engines.base import EngineOutOfDate
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.learner.reports import PublishedWeights
from services.trainer.metrics import VALIDATION_GAUGES
from services.trainer.publish_model import main as publish_main
from services.trainer.runs.run_folder import is_run_finished
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import Phase
from tests.fakes.small_run import QUESTIONS, WORLD, SmallRun, write_questions
from tests.fakes.small_world_services import SmallWorldGenerator

OTHERS = [question for question in WORLD.questions(24, "train") if question not in QUESTIONS]
HELD_OUT = (*OTHERS[:2], *OTHERS[3:6])  # answered with one search at most, in 23 tokens
TEXTS = {question.generator_text for question in HELD_OUT}
FEW_ROLLOUTS: dict[str, Any] = {"rollouts__groups_per_step": 1, "rollouts__group_size": 2}
# What ``complete`` trains with: a rate at which two steps change the answers to the validation questions.
CHANGING: dict[str, Any] = {
    "rollouts__groups_per_step": 2,
    "rollouts__group_size": 4,
    "update__optim__learning_rate": 0.02,
}


def validated(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return the settings of a run that is validated at each step, with few rollouts in between."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "held-out.jsonl"
    questions = str(path if path.exists() else write_questions(path, HELD_OUT))
    return {"steps": 2, "validation__questions": questions, "validation__every": 1, **FEW_ROLLOUTS, **settings}


def rows(run: SmallRun, step: int) -> dict[str, dict[str, Any]]:
    header, *found = (run.folder / "validation" / f"step_{step:06d}.jsonl").read_text().splitlines()
    assert json.loads(header)["weights"]
    return {row["question_id"]: row for row in map(json.loads, found)}


class RecordingEngine(TorchEngine):
    """Records what is sampled for validations, and fails a test whose weights change during one."""

    calls: ClassVar[list[tuple[str, float, int]]] = []
    open_sessions: ClassVar[set[str]] = set()
    most_open = 0

    def open_session(self, rollout_id: str) -> None:
        super().open_session(rollout_id)
        self.open_sessions.add(rollout_id)
        count = sum(name.startswith("v") for name in self.open_sessions)
        RecordingEngine.most_open = max(RecordingEngine.most_open, count)

    def close_session(self, rollout_id: str) -> None:
        super().close_session(rollout_id)
        self.open_sessions.discard(rollout_id)

    async def load_weights(self, weights: PublishedWeights) -> None:
        assert not any(name.startswith("v") for name in self.open_sessions)
        await super().load_weights(weights)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        generation = await super().generate(prompt_ids, sampling, rollout_id)
        if rollout_id.startswith("v"):
            (version,) = set(generation.versions)
            self.calls.append((rollout_id, sampling.temperature, version))
        return generation


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[RecordingEngine]:
    return install(monkeypatch)


def install(monkeypatch: pytest.MonkeyPatch) -> type[RecordingEngine]:
    monkeypatch.setattr(torch_engine, "TorchEngine", RecordingEngine)
    monkeypatch.setattr(RecordingEngine, "calls", [])
    monkeypatch.setattr(RecordingEngine, "open_sessions", set())
    monkeypatch.setattr(RecordingEngine, "most_open", 0)
    return RecordingEngine


@dataclass(frozen=True, slots=True)
class CompleteRun:
    """A run of two steps and three validations, the weights of one without validation, and what the engine saw."""

    run: SmallRun
    plain_fingerprints: list[str]
    calls: list[tuple[str, float, int]]
    most_open: int


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> CompleteRun:
    folder = tmp_path_factory.mktemp("complete")
    plain = asyncio.run(SmallRun(folder / "plain", steps=2, **CHANGING).train())
    settings = validated(folder / "run", validation__metric="reward", validation__in_flight=4, **CHANGING)
    with pytest.MonkeyPatch.context() as monkeypatch:
        engine = install(monkeypatch)
        run = asyncio.run(SmallRun(folder / "run", **settings).train())
        return CompleteRun(run, plain.fingerprints, list(engine.calls), engine.most_open)


def test_a_validated_run_trains_the_same_bits_and_each_validation_sees_one_version(complete: CompleteRun) -> None:
    run = complete.run
    assert run.fingerprints == complete.plain_fingerprints and len(set(run.fingerprints)) == 2
    assert [line["step"] for line in run.validations] == [0, 1, 2]
    assert [line["policy_version"] for line in run.validations] == [0, 1, 2]
    assert [line["fingerprint"] for line in run.validations][1:] == run.fingerprints
    assert {(temperature, version) for _, temperature, version in complete.calls} == {(0.0, n) for n in range(3)}
    assert complete.most_open == 4
    assert [line["validation_questions"] for line in run.validations] == [5] * 3


def test_every_gauge_has_the_number_of_the_last_validation_and_its_rollouts_are_counted_apart(
    complete: CompleteRun,
) -> None:
    run, last = complete.run, complete.run.validations[-1]
    assert VALIDATION_GAUGES.keys() <= last.keys()
    assert run.registry.get_sample_value("searchrl_trainer_validation_step") == 2
    for name in ("success_ratio", "reward"):
        value = run.registry.get_sample_value(f"searchrl_trainer_validation_{name}")
        assert value == last[f"validation_{name.removesuffix('_ratio')}"]
    counted = run.registry.get_sample_value("searchrl_trainer_turns_count")
    assert counted == 16 and run.column("rollouts") == [8, 8]  # of the training alone


def test_the_significance_is_that_of_the_evaluator(complete: CompleteRun) -> None:
    run = complete.run
    values = [{name: row["reward"] for name, row in rows(run, step).items()} for step in (0, 2)]
    expected, line = paired_difference(values[1], values[0]), run.validations[-1]
    assert expected.difference != 0
    assert line["validation_difference"] == pytest.approx(expected.difference, abs=1e-6)
    assert line["validation_p_value"] == pytest.approx(expected.p_value, abs=1e-6)
    assert (line["validation_wins"], line["validation_losses"]) == (expected.wins, expected.losses)
    assert "validation_difference" not in run.validations[0]


async def test_with_stale_rollouts_the_publication_waits_for_the_validation(
    tmp_path: Path, engine: type[RecordingEngine]
) -> None:
    # one question after the other, so that a validation is slower than a step
    write_questions(tmp_path / "held-out.jsonl", HELD_OUT[:3])
    settings = validated(tmp_path, rollouts__max_staleness=1, update__mini_batches=1, validation__in_flight=1)
    run = await SmallRun(tmp_path, **settings).train()
    assert [line["policy_version"] for line in run.validations] == [0, 1, 2]
    assert {version for _, _, version in engine.calls} == {0, 1, 2}
    assert max(run.column("seconds_validation")) > 0


async def test_a_token_of_another_version_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LateEngine(TorchEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
            found = await super().generate(prompt_ids, sampling, rollout_id)
            later = tuple(version + rollout_id.startswith("v") for version in found.versions)
            return Generation(found.ids, found.logprobs, later, found.finish_reason)

    monkeypatch.setattr(torch_engine, "TorchEngine", LateEngine)
    with pytest.raises(EngineOutOfDate, match="the validation of version 0 has tokens of version 1"):
        await SmallRun(tmp_path, **validated(tmp_path)).train()


class HeldOutGenerator(SmallWorldGenerator):
    """Counts what is asked of the validation questions; fails these while ``outage`` is set, or blocks after some."""

    def __init__(self, blocks_after: int | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.outage = 0  # calls that still fail
        self.refused: set[str] = set()
        self.blocks_after = blocks_after
        self.blocked = asyncio.Event()

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        if question in self.refused:
            raise TooLarge("the documents are over the LLM's context")
        if question in TEXTS:
            if self.outage:
                self.outage -= 1
                raise Unavailable("down")
            if self.blocks_after is not None and len(self.asked) >= self.blocks_after:
                self.blocked.set()
                await asyncio.Event().wait()
            self.asked.append(question)
        return await super().answer_from_context(question, passages)


async def test_an_outage_pauses_a_validation_and_is_never_a_zero(tmp_path: Path, complete: CompleteRun) -> None:
    generator = HeldOutGenerator()
    generator.outage = 4  # of the last 8 attempts, two failures open the circuit breaker
    settings = validated(tmp_path, reward__max_in_flight=1, steps=1, **CHANGING)
    run = await SmallRun(tmp_path, generator=generator, **settings).train()
    assert run.service._loop._orchestrator._breaker.outages >= 1  # type: ignore[attr-defined]
    names = ("step", "validation_success", "validation_reward", "validation_questions", "fingerprint")
    assert [[line[name] for name in names] for line in run.validations] == [
        [line[name] for name in names] for line in complete.run.validations[:2]
    ]


async def test_lost_searches_of_a_validation_are_repeated_and_too_many_losses_end_the_run(tmp_path: Path) -> None:
    settings = validated(tmp_path, rollouts__infra_retries=0, rollouts__max_restarts=2, steps=1)
    run = SmallRun(tmp_path, **settings)
    search, held_out = run.searcher.search, {question.retrieval_query for question in HELD_OUT}

    async def fail(queries: Sequence[str], top_k: int, filters: Any) -> Any:
        if set(queries) & held_out and top_k > 1:
            raise Unavailable("no searches for the validation")
        return await search(queries, top_k, filters)

    run.searcher.search = fail  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match=r"a validation question failed in each of 3 starts: .*no searches"):
        await run.train()
    assert run.validations == [] and rows(run, 0) == {}
    resumed = await SmallRun(tmp_path, **settings).train(resume=True)
    assert [line["step"] for line in resumed.validations] == [0, 1]


async def test_a_refused_question_has_no_value(tmp_path: Path) -> None:
    generator = HeldOutGenerator()
    generator.refused = {HELD_OUT[2].generator_text}
    run = await SmallRun(tmp_path, generator=generator, **validated(tmp_path, steps=1)).train()
    assert [(line["validation_questions"], line["validation_unscorable"]) for line in run.validations] == [(4, 1)] * 2
    assert rows(run, 1)[HELD_OUT[2].id]["reward"] is None


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_run_that_is_stopped_during_a_validation_repeats_nothing_of_it(
    tmp_path: Path, staleness: int, engine: type[RecordingEngine], complete: CompleteRun
) -> None:
    mode = {"rollouts__max_staleness": 1, "update__mini_batches": 1} if staleness else CHANGING
    settings = validated(tmp_path / "run", steps=1, **mode)
    first = SmallRun(tmp_path / "run", generator=HeldOutGenerator(blocks_after=2), **settings)
    running = asyncio.create_task(first.train())
    async with asyncio.timeout(60):
        await first.generator.blocked.wait()  # type: ignore[attr-defined]
        first.service.stop_if(True)
        await running
    assert first.service.status().phase is Phase.FINISHED and not first.service.status().completed
    assert first.service.status().saved_step == 0 and first.lines == []
    scored = rows(first, 0)
    assert len(scored) == 2
    numbers = {question.id: number for number, question in enumerate(HELD_OUT)}
    kept = {numbers[name] for name in scored}
    kept |= {int(path.name[1:10]) for path in (first.folder / "validation" / "unscored").iterdir()}
    assert len(kept) > 2  # also trajectories that wait for their score
    engine.calls.clear()
    generator = HeldOutGenerator()
    resumed = await SmallRun(tmp_path / "run", generator=generator, **settings).train(resume=True)
    sampled_again = {int(name[1:10]) for name, _, version in engine.calls if version == 0}
    assert sampled_again == set(range(5)) - kept
    texts = {question.id: question.generator_text for question in HELD_OUT}
    assert {texts[name] for name in scored}.isdisjoint(generator.asked[:3])
    assert [line["step"] for line in resumed.validations] == [0, 1]
    assert not (resumed.folder / "validation" / "unscored").exists()
    if not staleness:
        assert resumed.fingerprints == complete.plain_fingerprints[:1]


class Killed(Exception):
    """Ends a run where its process would be killed."""


async def kill_before_the_line(*_: object) -> None:
    raise Killed


def kill_before_the_best_is_named(_store: CheckpointStore, step: int | None) -> None:
    if step is not None:
        raise Killed


async def test_a_run_that_is_killed_while_it_records_a_validation_has_one_line_of_it_and_asks_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def train(resume: bool) -> SmallRun:
        run = SmallRun(tmp_path, generator=HeldOutGenerator(), **validated(tmp_path, steps=1))
        try:
            return await run.train(resume)
        finally:
            asked.append(len(run.generator.asked))  # type: ignore[attr-defined]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunLogger, "record_validation", kill_before_the_line)
        await train(resume=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointStore, "name_best", kill_before_the_best_is_named)
        await train(resume=True)
    run = await train(resume=True)
    assert [line["step"] for line in run.validations] == [0, 1]
    assert asked == [len(HELD_OUT), 0, len(HELD_OUT)]  # of version 0, of none, and of version 1
    assert (run.folder / "checkpoints" / "best").is_file()


async def test_a_stop_request_waits_for_the_validation_beside_its_step(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, **validated(tmp_path))
    training = asyncio.create_task(run.train())
    while not run.service._loop._validation.is_running:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    run.service.stop()
    await training
    assert [line["step"] for line in run.validations] == [0] and run.column("step") == [1]
    assert not run.service.status().completed


async def test_the_last_validation_is_resumed_before_the_model_is_exported(tmp_path: Path) -> None:
    settings = validated(tmp_path, steps=1, validation__every=0)
    run = SmallRun(tmp_path, generator=HeldOutGenerator(blocks_after=7), **settings)
    running = asyncio.create_task(run.train())
    async with asyncio.timeout(60):
        await run.generator.blocked.wait()  # type: ignore[attr-defined]
        run.service.stop_if(True)
        await running
    assert run.service.status().step == 1 and not (run.folder / "final").exists()
    assert not is_run_finished(run.config) and not run.service.status().completed
    resumed = await SmallRun(tmp_path, **settings).train(resume=True)
    assert resumed.service.status().completed and is_run_finished(resumed.config)
    assert [line["step"] for line in resumed.validations] == [0, 1]


async def test_a_run_that_is_stopped_while_it_pushes_its_last_weights_validates_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushing = asyncio.Event()

    class WaitingEngine(TorchEngine):
        async def load_weights(self, weights: PublishedWeights) -> None:
            if weights.version == 1:
                pushing.set()
                await asyncio.Event().wait()
            await super().load_weights(weights)

    settings = validated(tmp_path, steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "TorchEngine", WaitingEngine)
        run = SmallRun(tmp_path, **settings)
        running = asyncio.create_task(run.train())
        async with asyncio.timeout(60):
            await pushing.wait()
            run.service.stop()
            await running
    assert run.service.status().step == 1 and not run.service.status().completed
    resumed = await SmallRun(tmp_path, **settings).train(resume=True)
    assert [line["step"] for line in resumed.validations] == [0, 1] and is_run_finished(resumed.config)


async def test_the_best_checkpoint_is_kept_named_and_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With learning rate 0 all versions are equal, so the first is the best.
    settings = validated(tmp_path, steps=1, checkpoints__keep=1, update__optim__learning_rate=0.0)
    run = await SmallRun(tmp_path, **settings).train()
    folder = run.folder / "checkpoints"
    assert {path.name for path in folder.glob("step_*")} == {"step_0", "step_1"}
    assert (folder / "best").read_text() == "step_0\n" and (folder / "latest").read_text() == "step_1\n"
    assert [line["validation_best_step"] for line in run.validations] == [0, 0]
    assert run.validations[-1]["validation_p_value"] == 1 and run.validations[-1]["validation_difference"] == 0
    assert publish_main(["--run", str(run.folder), "--models", str(tmp_path / "models"), "--best"]) == 0
    assert "run-step-000000" in capsys.readouterr().out
    published = read_artifact(tmp_path / "models" / "run-step-000000")
    assert published is not None and published.metadata["fingerprint"] == run.validations[0]["fingerprint"]


async def test_a_run_without_improvement_ends_early_and_continues_with_more_patience(tmp_path: Path) -> None:
    settings = validated(tmp_path, steps=4, update__optim__learning_rate=0.0, validation__patience=1)
    run = await SmallRun(tmp_path, **settings).train()
    # The validation of step 1 is the first without an improvement; it ran beside step 2.
    assert run.service.status().step == 2 and run.service.status().completed
    assert is_run_finished(run.config) and (run.folder / "final" / "model.safetensors").is_file()
    patient = SmallRun(tmp_path, **{**settings, "validation__patience": 2})
    assert not is_run_finished(patient.config)
    await patient.train(resume=True)
    # 1 and 2 do not improve; 2 ran beside 3
    assert patient.service.status().step == 3 and is_run_finished(patient.config)


async def test_validation_can_begin_in_a_resumed_run_and_change_its_questions(tmp_path: Path) -> None:
    logging = {"trackers": ["tensorboard"], "trajectories_every": 0}
    await SmallRun(tmp_path, steps=1, logging=logging, **FEW_ROLLOUTS).train()
    settings = validated(tmp_path, validation__every=0, logging=logging)
    second = await SmallRun(tmp_path, **settings).train(resume=True)
    assert [line["step"] for line in second.validations] == [1, 2]
    check_tensorboard(second)
    write_questions(tmp_path / "others.jsonl", tuple(OTHERS[5:7]))
    changed = {**settings, "validation__questions": str(tmp_path / "others.jsonl"), "steps": 3}
    third = await SmallRun(tmp_path, **changed).train(resume=True)
    assert [line["step"] for line in third.validations] == [1, 2, 2, 3]
    assert third.validations[-1]["validation_start_step"] == 2


def check_tensorboard(run: SmallRun) -> None:
    """It has both validations, and still step 1, whose version the second process validated before it trained."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2]
    found = [(event.step, round(event.value, 4)) for event in events.Scalars("validation_success")]
    assert found == [(line["step"], round(line["validation_success"], 4)) for line in run.validations]
    assert "fingerprint" not in events.Tags()["scalars"]


def test_questions_of_the_training_are_refused_unless_a_warning_is_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_questions(tmp_path / "held-out.jsonl", QUESTIONS[:1])
    with pytest.raises(ConfigurationError, match="are also trained on"):
        SmallRun(tmp_path, **validated(tmp_path))
    SmallRun(tmp_path, **validated(tmp_path, validation__overlap="warn"))
    assert "1 of 1 questions" in caplog.text and "are also trained on" in caplog.text
