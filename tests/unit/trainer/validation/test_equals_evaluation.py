"""An evaluation of the exported model gives the figures of its validation, question by question.

Both sides are the real ones up to the services: the trainer's validation, and the evaluator's episodes over the
generator's run of a served searcher.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import SearchResult
from searchrl.domain.question import Choice, Question
from searchrl.platform.retry import RetryPolicy
from searchrl.statistics.intervals import bootstrap_proportion
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.evaluator.records.evaluation_run import MethodSpec
from services.evaluator.runs.episode_runner import EpisodeRunner
from services.evaluator.scoring.measures import ACCURACY, summarize, values_by_question
from services.generator.methods.base import Step
from services.generator.methods.s3 import SearcherRun
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.validation.scored_questions import read_scored
from tests.fakes.small_run import QUESTIONS, WORLD, SmallRun, write_questions
from tests.fakes.small_world_services import SmallWorldGenerator, SmallWorldSearcher

HELD_OUT = tuple([question for question in WORLD.questions(24, "train") if question not in QUESTIONS][:8])


class ServedSearcher:
    """A generator service with the exported searcher: its method s3 without the transport."""

    def __init__(self, folder: Path, policy: TorchEngine) -> None:
        searcher = SmallWorldSearcher(WORLD.passages)

        async def search(
            queries: Sequence[str], top_k: int, filters: Mapping[str, str]
        ) -> tuple[list[list[SearchResult]], str]:
            return await searcher.search(queries, top_k, filters), ""

        profile = SearcherProfile.from_json((folder / "searcher.json").read_text())
        retriever = SimpleNamespace(mode="", search_with_generation=search)
        self._run = SearcherRun(policy, retriever, ModelTokenizer.of_searcher(folder), profile)  # type: ignore[arg-type]
        self._llm = SmallWorldGenerator()

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer:
        async def ignore(_step: Step) -> None:
            pass

        gathered = await self._run.gather(question, self._run.defaults, ignore)
        documents = gathered.trajectory.documents
        return gathered.complete(await self._llm.answer_from_context(question.generator_text, documents))

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        return await self._llm.judge(question, answer, golden_answers, choices)

    async def list_methods(self) -> list[str]:
        return ["s3"]


async def test_the_evaluation_of_the_exported_model_equals_the_last_validation(tmp_path: Path) -> None:
    questions = str(write_questions(tmp_path / "held-out.jsonl", HELD_OUT))
    run = await SmallRun(tmp_path, steps=1, validation__questions=questions, validation__every=0).train()
    final = run.folder / "final"
    policy = TorchEngine.from_folder(final)
    try:
        runner = EpisodeRunner(ServedSearcher(final, policy), RetryPolicy())
        episodes = [(await runner.run(question, MethodSpec("s3"))).episode for question in HELD_OUT]
    finally:
        await policy.close()
    rows = read_scored(run.folder / "validation" / "step_000001.jsonl", {})
    assert values_by_question(episodes, ACCURACY) == {name: row.success for name, row in rows.items()}
    accuracy = summarize(episodes)["accuracy"]
    assert accuracy.mean == pytest.approx(run.validations[-1]["validation_success"], abs=1e-6)
    assert accuracy == bootstrap_proportion([row.success or 0.0 for row in rows.values()])
    assert [episode.answer.searches for episode in episodes] == [rows[question.id].searches for question in HELD_OUT]
    assert 0 < accuracy.mean < 1  # so that equal figures say something
