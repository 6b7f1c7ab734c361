"""Builds the naive-RAG baseline of a question file by an evaluation run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from searchrl.domain.answer import UNKNOWN_PROVENANCE, Provenance
from searchrl.domain.question import Question, question_sha256
from searchrl.errors import InvalidRequest, Unavailable
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import (
    NAIVE_RAG,
    EndReason,
    EvaluationState,
    MethodSpec,
    RunRecord,
    RunSpec,
)
from services.evaluator.store.run_store import RunStore


def make_baseline_spec(questions: Path, top_k: int, run_id: str, *, concurrency: int = 0) -> RunSpec:
    """The evaluation run that answers every question with naive RAG; a run of the same id continues."""
    return RunSpec(run_id, str(questions), (MethodSpec(NAIVE_RAG, top_k=top_k),), concurrency=concurrency)


async def build_baselines(service: EvaluationService, store: RunStore, spec: RunSpec) -> BaselineCache:
    """Run, or continue, and convert the rows into baselines.

    Raises:
        Unavailable: an outage cost some answers, so the file would be incomplete; run it again.
        InvalidRequest: some questions are refused permanently, or the index or a model changed during the run.
    """
    await service.create_run(spec, retry_failures=True)
    record = (await service.wait_for_run(spec.run_id)).record
    episodes = store.episodes(spec.run_id)
    rows = {episode.question_id: episode for episode in episodes if not episode.failure}
    # All or nothing: a reward needs the baseline of every training question, and a missing one would fail hours later.
    missing = record.total_questions - len(rows)
    if record.state is not EvaluationState.FINISHED or missing:
        refused = [row for row in episodes if row.is_refused]
        message = f"{missing} of {record.total_questions} questions have no baseline"
        if record.error:
            message += f": {record.error}"
        if record.reason is EndReason.OUTAGE:
            raise Unavailable(f"{message}; run the command again to continue", retry_after_seconds=None)
        if refused and not record.error:
            first = refused[0]
            message += f": refused permanently, the first is {first.question_id!r} ({first.failure}: {first.error})"
        raise InvalidRequest(message)
    return BaselineCache(_version(record, list(rows.values())), collect_baselines(store.questions(spec.run_id), rows))


def _version(record: RunRecord, rows: Sequence[Episode]) -> BaselineVersion:
    """The version of all rows; the run's ``ProvenanceGuard`` has made sure that they agree."""
    made = rows[0].answer.provenance if rows else UNKNOWN_PROVENANCE
    return replace(
        make_version(record.questions_sha256, made, record.spec.methods[0].top_k or 0),
        # The generation that the answers name; if they name none, the one seen when the run was created.
        index_generation=(*made.index_generations, record.index_generation)[0],
        # At most one version, because the guard compares it; empty if no question was judged.
        judge_version="+".join(
            sorted({row.verdict.judge_version for row in rows if row.verdict and row.verdict.judge_version})
        ),
    )


def make_version(questions_sha256: str, made: Provenance, top_k: int) -> BaselineVersion:
    """The version of baselines made like one answer of naive RAG, which does not show the judge's version."""
    return BaselineVersion(
        questions_sha256=questions_sha256,
        index_generation=made.index_generations[0] if made.index_generations else "",
        top_k=made.top_k or top_k,
        generator_model=made.generator_model,
        mode=made.mode,
        template_hash=made.template_hash,
        max_context_tokens=made.max_context_tokens,
        max_answer_tokens=made.max_answer_tokens,
        temperature=made.temperature if made.generator_model else None,
    )


def collect_baselines(questions: Sequence[Question], rows: dict[str, Episode]) -> dict[str, Baseline]:
    """Baselines in the order of the questions."""
    return {
        question.id: Baseline(
            question=question.text,
            answer=rows[question.id].answer.text,
            correct=bool(rows[question.id].correct),
            exact_match=bool(rows[question.id].exact_match),
            source=question.source,
            question_sha256=question_sha256(question),
        )
        for question in questions
    }
