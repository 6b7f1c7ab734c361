"""How is the naive-RAG baseline of a question file made?"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from searchrl.domain.question import Question
from searchrl.errors import Unavailable
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.runs.episode import Episode
from services.evaluator.runs.evaluation_run import MethodSpec, RunSpec
from services.evaluator.store.run_store import RunStore

NAIVE_RAG = "rag"


def baseline_run(questions: Path, top_k: int, run_id: str, *, concurrency: int = 0) -> RunSpec:
    """The evaluation run that answers every question with naive RAG; ended runs are continued by the same id."""
    return RunSpec(run_id, str(questions), (MethodSpec(NAIVE_RAG, top_k=top_k),), concurrency=concurrency)


async def build_baselines(
    service: EvaluationService, store: RunStore, spec: RunSpec, *, generator_model: str
) -> BaselineCache:
    """Run, or continue, and turn the rows into baselines.

    Raises:
        Unavailable: some questions could not be answered or judged, so the file would have holes; run it again.
    """
    await service.create_run(spec, retry_failures=True)
    record = (await service.wait_for_run(spec.run_id)).record
    rows = {episode.question_id: episode for episode in store.episodes(spec.run_id) if not episode.failure}
    if record.error or len(rows) < record.total_questions:
        raise Unavailable(
            f"{record.total_questions - len(rows)} of {record.total_questions} questions have no baseline yet"
            f"{': ' + record.error if record.error else ''}; run the command again to continue",
            retry_after_seconds=None,
        )
    version = BaselineVersion(
        questions_sha256=record.questions_sha256,
        index_generation=record.index_generation,
        top_k=record.spec.methods[0].top_k or 0,
        generator_model=generator_model,
        judge_version=_one_judge(rows.values()),
    )
    return BaselineCache(version, baselines_of(store.questions(spec.run_id), rows))


def baselines_of(questions: Sequence[Question], rows: dict[str, Episode]) -> dict[str, Baseline]:
    """Baselines in the order of the questions."""
    return {
        question.id: Baseline(
            question=question.text,
            answer=rows[question.id].answer,
            correct=bool(rows[question.id].correct),
            exact_match=bool(rows[question.id].exact_match),
            source=question.source,
        )
        for question in questions
    }


def _one_judge(rows: Iterable[Episode]) -> str:
    """The judge's version; several (it changed while the run went on) are all named."""
    return "+".join(sorted({row.judge_version for row in rows if row.judge_version}))
