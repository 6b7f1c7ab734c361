"""How runs end: answers lost in an outage are made later, refusals are bounded, and nothing is generated for twice."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from searchrl.domain.answer import Answer, Provenance
from searchrl.domain.question import Question
from searchrl.errors import DeadlineExceeded, InvalidRequest, Overloaded, TooLarge, Unauthenticated, Unavailable
from services.evaluator.records.episode import NOT_APPLICABLE
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, MethodSpec, RunSpec
from services.evaluator.runs.episode_runner import NotApplicable
from services.evaluator.runs.run_progress import RunResults
from services.evaluator.store.run_store import RunStore
from tests.fakes.scripted_generator import ScriptedGenerator, right, wrong

S3_AND_RAG = (MethodSpec("s3"), MethodSpec("rag"))
OUTAGE = [Unavailable("gone")] * 3  # one for each attempt


def spec(question_file: Path, **changes: object) -> RunSpec:
    return RunSpec(**{"run_id": "r1", "questions": str(question_file), "methods": S3_AND_RAG, **changes})


async def run_to_end(service, wanted: RunSpec, **options: bool) -> RunResults:
    await service.create_run(wanted, **options)
    return await service.wait_for_run(wanted.run_id)


# ---- outages


async def test_a_run_that_lost_answers_is_incomplete_and_finishes_if_created_again(make_service, question_file) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", *OUTAGE)
    service = make_service(generator)
    view = await run_to_end(service, spec(question_file))
    assert (view.record.state, view.record.reason) == (EvaluationState.INCOMPLETE, EndReason.OUTAGE)
    assert "1 answers or verdicts were lost" in view.record.error
    view = await run_to_end(service, spec(question_file))
    assert (view.record.state, view.record.reason, view.record.error) == (EvaluationState.FINISHED, EndReason.NONE, "")
    assert generator.calls["s3", "q5"] == 1


async def test_questions_lost_to_a_short_outage_are_retried_before_the_run_ends(make_service, question_file) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", *OUTAGE)
    view = await run_to_end(make_service(generator, passes=2), spec(question_file))
    assert view.record.state is EvaluationState.FINISHED
    assert (view.columns[0].done, view.columns[0].failed) == (10, 0)


async def test_an_answer_whose_judge_failed_is_kept_and_only_judged_later(
    make_service, store: RunStore, question_file
) -> None:
    generator = ScriptedGenerator({"s3": wrong})
    generator.fail("judge", "Who leads company 2?", *OUTAGE)
    one = spec(question_file, methods=(MethodSpec("s3"),))
    view = await run_to_end(make_service(generator), one)
    assert (view.record.state, view.columns[0].done) == (EvaluationState.INCOMPLETE, 9)
    (kept,) = [row for row in store.episodes("r1") if row.failure]
    assert (kept.answer.text, kept.answer.documents) == ("unknown", ("noise",))
    assert (kept.failure, kept.is_unjudged) == ("unavailable", True)
    view = await run_to_end(make_service(generator), one)
    assert view.record.state is EvaluationState.FINISHED
    judged = next(row for row in store.episodes("r1") if row.question_id == kept.question_id)
    assert (judged.failure, judged.error, judged.is_unjudged, judged.correct) == ("", "", False, False)
    assert judged.answer == kept.answer
    assert set(generator.calls.values()) == {1}


@pytest.mark.parametrize("seed", range(6))
async def test_every_answer_is_generated_once_whatever_fails(
    make_service, store: RunStore, question_file, seed: int
) -> None:
    draw = random.Random(seed)
    kinds = (Unavailable, Overloaded, DeadlineExceeded)
    generated: list[tuple[str, str]] = []

    def answering(rule: Callable[[Question], Answer], name: str) -> Callable[[Question], Answer]:
        def answer(question: Question) -> Answer:
            generated.append((name, question.id))
            return rule(question)

        return answer

    generator = ScriptedGenerator({"s3": answering(right, "s3"), "rag": answering(wrong, "rag")})
    for number in range(10):
        for method in ("s3", "rag"):
            generator.fail(
                method, f"q{number}", *[draw.choice(kinds)("x") for _ in range(draw.choice((0, 0, 2, 4, 8)))]
            )
        generator.fail("judge", f"Who leads company {number}?", *[Unavailable("x")] * draw.choice((0, 1, 5, 9)))
    service = make_service(generator)
    for _ in range(8):
        view = await run_to_end(service, spec(question_file, concurrency=draw.choice((1, 4))))
        if view.record.state is EvaluationState.FINISHED:
            break
    else:
        pytest.fail("the run did not finish in eight starts")
    assert len(generated) == len(set(generated)) == 20
    assert len(store.episodes("r1")) == 20


async def test_a_store_that_fails_for_a_while_loses_nothing(make_service, store: RunStore, question_file) -> None:
    append, failures = store.append, [Unavailable("full"), Unavailable("full")]

    def failing(*arguments):  # type: ignore[no-untyped-def]
        if failures:
            raise failures.pop()
        return append(*arguments)

    store.append = failing  # type: ignore[method-assign]
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    view = await run_to_end(make_service(generator), spec(question_file))
    assert view.record.state is EvaluationState.FINISHED
    assert len(store.episodes("r1")) == 20
    assert set(generator.calls.values()) == {1}


# ---- refusals


async def test_a_run_whose_every_question_is_refused_ends_soon_and_names_one(make_service, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"id": "q{n}", "question": "Why {n}?", "answer": "a"}}\n' for n in range(500)))
    generator = ScriptedGenerator({"s3": right})
    for number in range(500):
        generator.fail("s3", f"q{number}", TooLarge("over 10 tokens"))
    view = await run_to_end(make_service(generator), spec(path, methods=(MethodSpec("s3"),), concurrency=4))
    assert (view.record.state, view.record.reason) == (EvaluationState.FAILED, EndReason.MISCONFIGURED)
    assert "20 of 500 questions of s3 were refused permanently" in view.record.error
    assert "too_large: over 10 tokens" in view.record.error
    assert len(generator.calls) < 30


async def test_a_few_refused_questions_are_counted_and_the_run_is_finished(make_service, question_file) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", InvalidRequest("no"))
    service = make_service(generator)
    view = await run_to_end(service, spec(question_file))
    assert view.record.state is EvaluationState.FINISHED
    assert (view.columns[0].done, view.columns[0].failed, view.columns[0].lost) == (9, 1, 0)
    await run_to_end(service, spec(question_file))
    assert generator.calls["s3", "q4"] == 1  # a refused question is asked again only with retry_failures
    view = await run_to_end(service, spec(question_file), retry_failures=True)
    assert (view.columns[0].done, generator.calls["s3", "q4"]) == (10, 2)


async def test_too_many_refused_questions_end_the_run(make_service, question_file) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    for number in range(3, 9):
        generator.fail("s3", f"q{number}", InvalidRequest("no"))
    view = await run_to_end(make_service(generator), spec(question_file, concurrency=1))
    assert view.record.reason is EndReason.MISCONFIGURED
    assert "6 of 10 questions of s3" in view.record.error


async def test_a_small_run_with_nothing_but_refusals_is_misconfigured_and_can_be_repaired(
    make_service, question_file
) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    for name in ("q0", "q1"):
        generator.fail("s3", name, InvalidRequest("no"))
    service = make_service(generator)
    view = await run_to_end(service, spec(question_file, limit=2))
    assert view.record.reason is EndReason.MISCONFIGURED
    view = await run_to_end(service, spec(question_file, limit=2))
    assert (view.record.state, view.columns[0].done) == (EvaluationState.FINISHED, 2)


async def test_a_key_that_is_not_accepted_is_a_misconfiguration(make_service, question_file) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q0", Unauthenticated("no key"))
    view = await run_to_end(make_service(generator), spec(question_file))
    assert (view.record.state, view.record.reason) == (EvaluationState.FAILED, EndReason.MISCONFIGURED)


async def test_a_method_that_does_not_apply_to_a_question_neither_fails_nor_keeps_a_run_from_its_end(
    make_service, store: RunStore, question_file
) -> None:
    generator = ScriptedGenerator({"s3": right, "oracle": right})
    for number in range(10):
        generator.fail("oracle", f"q{number}", *[NotApplicable("no gold passages")] * 9)  # type: ignore[arg-type]
    methods = (MethodSpec("s3"), MethodSpec("oracle"))
    service = make_service(generator)
    view = await run_to_end(service, spec(question_file, methods=methods))
    assert view.record.state is EvaluationState.FINISHED
    oracle = view.columns[1]
    assert (oracle.done, oracle.failed, oracle.not_applicable, oracle.pending) == (0, 0, 10, 0)
    assert {row.failure for row in store.episodes("r1", "oracle")} == {NOT_APPLICABLE}
    await run_to_end(service, spec(question_file, methods=methods), retry_failures=True)
    assert generator.calls["oracle", "q0"] == 1


# ---- provenance of the answers


class Remade(ScriptedGenerator):
    """Reports ``first`` as the provenance of the first ``after`` answers, and ``then`` afterwards."""

    def __init__(self, first: Provenance, then: Provenance | None = None, after: int = 5) -> None:
        super().__init__({"s3": right, "rag": wrong})
        self.first, self.then, self.after = first, then or first, after

    async def answer(self, question, method, *, with_trajectory=False):  # type: ignore[no-untyped-def]
        answered = await super().answer(question, method)
        made = self.first if self.answered <= self.after else self.then
        return replace(answered, provenance=made)


BASE = Provenance(
    generator_model="m1", index_generations=("g1",), mode="bm25", top_k=3, template_hash="t1", max_context_tokens=100
)
ONE = (MethodSpec("s3"),)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"generator_model": "m2"}, "generator's model changed .* from m1 to m2"),
        ({"index_generations": ("g2",)}, "index generation changed .* from g1 to g2"),
        ({"index_generations": ("g1", "g2")}, "index generation changed"),
        ({"mode": "dense"}, "retrieval mode changed"),
        ({"mode": ""}, "retrieval mode changed .* to the index's default"),
        ({"template_hash": "t2"}, "template changed"),
        ({"max_context_tokens": 50}, "token budget of the documents changed"),
        ({"max_answer_tokens": 50}, "token budget of the answer changed"),
        ({"temperature": 0.5}, "temperature changed .* from 0 to 0.5"),
        ({"top_k": 5}, "number of passages per search of s3 changed"),
    ],
)
async def test_a_run_stops_at_the_first_answer_of_another_provenance(
    make_service, store: RunStore, question_file, change: dict[str, object], named: str
) -> None:
    generator = Remade(BASE, replace(BASE, **change))
    service = make_service(generator)
    view = await run_to_end(service, spec(question_file, methods=ONE, concurrency=1))
    assert (view.record.state, view.record.reason) == (EvaluationState.FAILED, EndReason.CHANGED)
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(view.record.error)
    assert {row.answer.provenance for row in store.episodes("r1")} == {BASE}
    assert len(store.episodes("r1")) == 5
    view = await run_to_end(service, spec(question_file, methods=ONE, concurrency=1))  # still changed
    assert view.record.reason is EndReason.CHANGED
    assert len(store.episodes("r1")) == 5
    view = await run_to_end(service, spec(question_file, methods=ONE, allow_changes=True))
    assert (view.record.state, view.columns[0].done) == (EvaluationState.FINISHED, 10)
    assert [values for values in view.record.provenance.values() if len(values) > 1]


async def test_a_changed_judge_stops_a_run_too(make_service, question_file) -> None:
    generator = Remade(BASE)
    judge = generator.judge

    async def judge_as_j2(*arguments):  # type: ignore[no-untyped-def]
        verdict = await judge(*arguments)
        return replace(verdict, judge_version="j2") if len(generator.judged) > 4 else verdict

    generator.judge = judge_as_j2  # type: ignore[method-assign]
    view = await run_to_end(make_service(generator), spec(question_file, methods=ONE, concurrency=1))
    assert view.record.reason is EndReason.CHANGED
    assert "the judge changed during the run, from fake-judge-1 to j2" in view.record.error


async def test_a_searcher_of_a_new_version_stops_a_run(make_service, question_file) -> None:
    made = replace(BASE, searcher_model="s", searcher_version="v1")
    view = await run_to_end(
        make_service(Remade(made, replace(made, searcher_version="v2"))), spec(question_file, methods=ONE)
    )
    assert "searcher's version of s3 changed" in view.record.error


async def test_columns_may_have_a_searcher_and_a_top_k_of_their_own(make_service, question_file) -> None:
    class TwoSearchers(Remade):
        async def answer(self, question, method, *, with_trajectory=False):  # type: ignore[no-untyped-def]
            answered = await super().answer(question, method)
            own = replace(BASE, top_k=method.top_k, searcher_version=method.name)
            return replace(answered, provenance=own)

    methods = (MethodSpec("s3", label="a", top_k=3), MethodSpec("s3", label="b", top_k=9))
    view = await run_to_end(make_service(TwoSearchers(BASE)), spec(question_file, methods=methods))
    assert view.record.state is EvaluationState.FINISHED
    assert view.record.provenance["top_k of b"] == ("9",)
    assert view.record.provenance["generator_model"] == ("m1",)


async def test_a_run_does_not_continue_on_another_model(make_service, store: RunStore, question_file) -> None:
    generator = Remade(BASE)
    generator.fail("s3", "q4", *OUTAGE)
    await run_to_end(make_service(generator), spec(question_file, methods=ONE))
    other = Remade(replace(BASE, generator_model="m2"))
    view = await run_to_end(make_service(other), spec(question_file, methods=ONE))
    assert (view.record.reason, len(store.episodes("r1"))) == (EndReason.CHANGED, 10)
    assert [row.failure for row in store.episodes("r1") if row.question_id == "q4"] == ["unavailable"]


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", "a b", "ä", "a\n", "x" * 201, "%2e"])
async def test_a_run_id_that_a_url_reads_as_something_else_is_refused(make_service, question_file, run_id: str) -> None:
    with pytest.raises(InvalidRequest, match="run_id"):
        await make_service(ScriptedGenerator({"s3": right, "rag": wrong})).create_run(
            spec(question_file, run_id=run_id)
        )


async def test_runs_of_ids_that_were_allowed_before_are_still_read(store: RunStore) -> None:
    from services.evaluator.records.evaluation_run import RunRecord

    old = RunSpec("an old id", "q.jsonl", S3_AND_RAG)
    store.create_run(RunRecord(old, old.methods, "abc", 1), [])
    assert store.run("an old id").spec == old
