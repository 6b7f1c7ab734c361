"""Converts runs, questions and episodes to rows of the store and back, by pure functions."""

import json
from dataclasses import asdict
from typing import NotRequired, TypedDict, cast

import orjson

from searchrl.domain.answer import UNKNOWN_PROVENANCE, Answer, Provenance, SearchStep, Usage, Verdict
from searchrl.domain.question import Choice, Question
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, MethodSpec, RunRecord, RunSpec

RUN_COLUMNS = (
    "run_id, spec, columns, questions_sha256, total_questions, state, index_generation, error, created, finished, facts"
)
EPISODE_COLUMNS = "run_id, label, question_id, failure, correct, seconds, body, trajectory"

RunRow = tuple[str, str, str, str, int, str, str, str, str, str, str]
EpisodeRow = tuple[str, str, str, str, int | None, float, str, bytes | None]


class EpisodeBody(TypedDict):
    """The part of an episode that no query needs as a column. Keys that are not required are missing in old rows."""

    error: str
    answer: str
    decided_by: str
    judge_version: str
    exact_match: float | None
    f1: float | None
    gold_recall: float | None
    documents: list[str]
    steps: list[tuple[int, str, list[str], list[str] | None]]
    searches: int
    prompt_tokens: int
    completion_tokens: int
    context_tokens: int
    stop_reason: str
    policy_version: str
    searcher_prompt_tokens: NotRequired[int]
    searcher_completion_tokens: NotRequired[int]
    judge_prompt_tokens: NotRequired[int]
    judge_completion_tokens: NotRequired[int]
    provenance: NotRequired[dict[str, object]]
    is_unjudged: NotRequired[bool]
    finish_reason: NotRequired[str]
    cut: NotRequired[list[str]]
    left_out: NotRequired[list[str]]


def run_to_row(record: RunRecord) -> RunRow:
    return (
        record.spec.run_id,
        json.dumps(asdict(record.spec)),
        json.dumps([asdict(column) for column in record.columns]),
        record.questions_sha256,
        record.total_questions,
        record.state.value,
        record.index_generation,
        record.error,
        record.created,
        record.finished,
        json.dumps({"reason": record.reason.value, "provenance": record.provenance}),
    )


def run_from_row(row: RunRow) -> RunRecord:
    spec = json.loads(row[1])
    spec["methods"] = tuple(MethodSpec(**method) for method in spec["methods"])
    columns = tuple(MethodSpec(**column) for column in json.loads(row[2]))
    facts = json.loads(row[10])
    return RunRecord(
        spec=RunSpec(**spec),
        columns=columns,
        questions_sha256=row[3],
        total_questions=row[4],
        state=EvaluationState(row[5]),
        index_generation=row[6],
        error=row[7],
        reason=EndReason(facts.get("reason", "")),
        provenance={name: tuple(values) for name, values in facts.get("provenance", {}).items()},
        created=row[8],
        finished=row[9],
    )


def question_to_text(question: Question) -> str:
    row = {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "gold_doc_ids": list(question.gold_passage_ids),
        "source": question.source,
        "filters": dict(question.filters),
        "metadata": dict(question.metadata),
        "choices": [[choice.label, choice.text] for choice in question.choices],
        "generator_text": question.generator_text,
        "retrieval_query": question.retrieval_query,
    }
    return json.dumps(row, ensure_ascii=False)


def question_from_text(text: str) -> Question:
    """Read a stored question; rows of older stores have one text and no options."""
    row = json.loads(text)
    return Question(
        id=row["id"],
        text=row["question"],
        golden_answers=tuple(row["golden_answers"]),
        source=row["source"],
        filters=row["filters"],
        metadata=row["metadata"],
        gold_passage_ids=tuple(row["gold_doc_ids"]),
        choices=tuple(Choice(label, option) for label, option in row.get("choices", ())),
        generator_text=row.get("generator_text", ""),
        retrieval_query=row.get("retrieval_query", ""),
    )


def episode_to_row(run_id: str, episode: Episode) -> EpisodeRow:
    answer, usage, verdict = episode.answer, episode.answer.usage, episode.verdict
    # One JSON value and not a column per fact: a new fact then needs no conversion of old stores.
    body = EpisodeBody(
        error=episode.error,
        answer=answer.text,
        decided_by=verdict.decided_by if verdict else "",
        judge_version=verdict.judge_version if verdict else "",
        exact_match=episode.exact_match,
        f1=episode.f1,
        gold_recall=episode.gold_recall,
        documents=list(answer.documents),
        steps=[
            (step.turn, step.query, list(step.found), None if step.selected is None else list(step.selected))
            for step in answer.steps
        ],
        searches=answer.searches,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        context_tokens=usage.context_tokens,
        stop_reason=answer.stop_reason,
        policy_version=answer.policy_version,
        searcher_prompt_tokens=usage.searcher_prompt_tokens,
        searcher_completion_tokens=usage.searcher_completion_tokens,
        judge_prompt_tokens=verdict.prompt_tokens if verdict else 0,
        judge_completion_tokens=verdict.completion_tokens if verdict else 0,
        is_unjudged=episode.is_unjudged,
        finish_reason=answer.finish_reason,
        cut=list(answer.cut),
        left_out=list(answer.left_out),
    )
    if answer.provenance != UNKNOWN_PROVENANCE:
        body["provenance"] = asdict(answer.provenance)
    return (
        run_id,
        episode.label,
        episode.question_id,
        episode.failure,
        None if verdict is None else int(verdict.correct),
        answer.seconds,
        # Not json: a run has one row for each method and question, and a report reads all of them.
        orjson.dumps(body).decode(),
        episode.trajectory or None,
    )


def episode_from_row(row: EpisodeRow) -> Episode:
    body: EpisodeBody = orjson.loads(row[6])
    return Episode(
        label=row[1],
        question_id=row[2],
        answer=_answer(body, row[5]),
        verdict=None if row[4] is None else _verdict(body, bool(row[4])),
        failure=row[3],
        error=body["error"],
        exact_match=body["exact_match"],
        f1=body["f1"],
        gold_recall=body["gold_recall"],
        is_unjudged=body.get("is_unjudged", False),
        trajectory=row[7] or b"",
    )


def _answer(body: EpisodeBody, seconds: float) -> Answer:
    return Answer(
        text=body["answer"],
        documents=tuple(body["documents"]),
        cut=tuple(body.get("cut", ())),
        left_out=tuple(body.get("left_out", ())),
        finish_reason=body.get("finish_reason", ""),
        usage=Usage(
            prompt_tokens=body["prompt_tokens"],
            completion_tokens=body["completion_tokens"],
            context_tokens=body["context_tokens"],
            searcher_prompt_tokens=body.get("searcher_prompt_tokens", 0),
            searcher_completion_tokens=body.get("searcher_completion_tokens", 0),
        ),
        provenance=_provenance(body.get("provenance")),
        steps=tuple(
            SearchStep(turn, query, tuple(found), None if selected is None else tuple(selected))
            for turn, query, found, selected in body["steps"]
        ),
        searches=body["searches"],
        stop_reason=body["stop_reason"],
        policy_version=body["policy_version"],
        seconds=seconds,
    )


def _verdict(body: EpisodeBody, correct: bool) -> Verdict:
    return Verdict(
        correct=correct,
        decided_by=body["decided_by"],
        judge_version=body["judge_version"],
        prompt_tokens=body.get("judge_prompt_tokens", 0),
        completion_tokens=body.get("judge_completion_tokens", 0),
    )


def _provenance(stored: dict[str, object] | None) -> Provenance:
    if stored is None:
        return UNKNOWN_PROVENANCE
    known = {**stored, "index_generations": tuple(cast("list[str]", stored["index_generations"]))}
    return Provenance(**known)  # pyright: ignore[reportArgumentType] - written by ``asdict``
