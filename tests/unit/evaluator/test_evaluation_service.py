"""Evaluation runs start once, count correctly, continue after an interruption, and end as they should."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.errors import Conflict, DeadlineExceeded, Forbidden, InvalidRequest, NotFound, Unavailable
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EvaluationState, MethodSpec, RunSpec
from services.evaluator.runs.episode_runner import NotApplicable
from services.evaluator.store.run_store import RunStore
from tests.fakes.scripted_generator import FixedPassages, ScriptedGenerator, right, wrong

S3_AND_RAG = (MethodSpec("s3"), MethodSpec("rag"))


def spec(question_file: Path, **changes: object) -> RunSpec:
    return RunSpec(**{"run_id": "r1", "questions": str(question_file), "methods": S3_AND_RAG, **changes})


async def test_a_run_answers_every_question_with_every_method(make_service, question_file: Path) -> None:
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}))
    await service.create_run(spec(question_file))
    view = await service.wait_for_run("r1")
    assert view.record.state is EvaluationState.FINISHED
    by_label = {column.label: column for column in view.columns}
    assert (by_label["s3"].done, by_label["rag"].done) == (10, 10)
    assert by_label["s3"].estimates["accuracy"].mean == 1.0
    assert by_label["rag"].estimates["accuracy"].mean == 0.0
    assert by_label["s3"].estimates["gold_recall"].mean == 1.0


async def test_creating_a_run_twice_runs_it_once(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    service = make_service(generator)
    await asyncio.gather(*(service.create_run(spec(question_file)) for _ in range(3)))
    await service.wait_for_run("r1")
    await service.create_run(spec(question_file))
    await service.wait_for_run("r1")
    assert set(generator.calls.values()) == {1}


async def test_the_same_id_with_other_settings_is_a_conflict(make_service, question_file: Path) -> None:
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}))
    await service.create_run(spec(question_file))
    with pytest.raises(Conflict, match="limit"):
        await service.create_run(spec(question_file, limit=3))


async def test_concurrency_is_not_part_of_the_identity(make_service, question_file: Path) -> None:
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}))
    await service.create_run(spec(question_file, concurrency=2))
    await service.create_run(spec(question_file, concurrency=3))


async def test_a_failed_run_does_not_continue_on_a_changed_file(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q0", Forbidden("wrong key"))
    service = make_service(generator)
    await service.create_run(spec(question_file))
    assert (await service.wait_for_run("r1")).record.state is EvaluationState.FAILED
    question_file.write_text(question_file.read_text() + "\n" + json.dumps({"id": "x", "question": "?", "answer": "a"}))
    with pytest.raises(Conflict, match="changed"):
        await service.create_run(spec(question_file))


async def test_an_unknown_method_is_refused_before_anything_runs(make_service, question_file: Path) -> None:
    service = make_service(ScriptedGenerator({"s3": right}))
    with pytest.raises(InvalidRequest, match="does not serve rag"):
        await service.create_run(spec(question_file))
    with pytest.raises(NotFound):
        await service.get_run("r1")


async def test_no_more_episodes_run_at_once_than_allowed(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong}, seconds=0.001)
    service = make_service(generator)
    await service.create_run(spec(question_file, concurrency=3))
    await service.wait_for_run("r1")
    assert generator.most_running == 3


async def test_a_short_failure_is_retried_and_changes_no_result(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", Unavailable("gone"), DeadlineExceeded("slow"))
    service = make_service(generator)
    await service.create_run(spec(question_file))
    view = await service.wait_for_run("r1")
    assert generator.calls["s3", "q4"] == 3
    assert view.columns[0].failed == 0
    assert view.columns[0].estimates["accuracy"].mean == 1.0


async def test_a_lasting_failure_is_recorded_and_never_counted_as_wrong(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", *[Unavailable("gone")] * 3)
    service = make_service(generator)
    await service.create_run(spec(question_file))
    view = await service.wait_for_run("r1")
    column = view.columns[0]
    assert (column.done, column.failed, column.lost, column.outcomes) == (9, 1, 1, {"unavailable": 1})
    assert column.coverage == 0.9
    assert column.estimates["accuracy"].mean == 1.0
    assert column.estimates["accuracy"].count == 9


async def test_a_failed_judge_is_a_failure_and_not_a_wrong_answer(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("judge", "Who leads company 2?", *[Unavailable("judge gone")] * 6)
    service = make_service(generator)
    await service.create_run(spec(question_file))
    view = await service.wait_for_run("r1")
    assert view.record.state is EvaluationState.INCOMPLETE
    assert [column.failed for column in view.columns] == [1, 1]


async def test_retrying_failures_of_a_finished_run_answers_the_lost_questions(
    make_service, question_file: Path
) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", *[Unavailable("gone")] * 3)
    service = make_service(generator)
    await service.create_run(spec(question_file))
    await service.wait_for_run("r1")
    await service.create_run(spec(question_file), retry_failures=True)
    view = await service.wait_for_run("r1")
    assert (view.columns[0].done, view.columns[0].failed) == (10, 0)
    assert generator.calls["s3", "q4"] == 4
    assert generator.calls["s3", "q5"] == 1


async def test_results_that_are_read_while_their_run_continues_are_not_kept(
    make_service, store: RunStore, question_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    generator.fail("s3", "q4", *[Unavailable("gone")] * 3)
    first = make_service(generator)
    await first.create_run(spec(question_file))
    assert (await first.wait_for_run("r1")).record.state is EvaluationState.INCOMPLETE
    reading, continued = threading.Event(), threading.Event()
    read_episodes = store.episodes

    def read_slowly_once(run_id: str) -> list[Episode]:
        monkeypatch.setattr(store, "episodes", read_episodes)
        rows = read_episodes(run_id)
        reading.set()
        continued.wait(10)
        return rows

    monkeypatch.setattr(store, "episodes", read_slowly_once)
    service = make_service(generator)  # without results in memory
    early = asyncio.create_task(service.get_run("r1"))
    await asyncio.to_thread(reading.wait, 10)
    await service.create_run(spec(question_file))
    assert (await service.wait_for_run("r1")).record.state is EvaluationState.FINISHED
    continued.set()
    assert (await early).record.state is EvaluationState.FINISHED
    view = await service.get_run("r1")
    assert (view.record.state, view.columns[0].done) == (EvaluationState.FINISHED, 10)


async def test_an_unavailable_generator_ends_the_run_early_and_it_can_be_continued(
    make_service, question_file: Path
) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    for number in range(10):
        generator.fail("rag", f"q{number}", *[Unavailable("gone")] * 3)
        generator.fail("s3", f"q{number}", *[Unavailable("gone")] * 3)
    service = make_service(generator, max_consecutive_failures=4)
    await service.create_run(spec(question_file, concurrency=1))
    view = await service.wait_for_run("r1")
    assert view.record.state is EvaluationState.FAILED
    assert "4 consecutive episodes" in view.record.error
    assert sum(generator.calls.values()) == 12
    generator.failures.clear()
    await service.create_run(spec(question_file, concurrency=1))
    view = await service.wait_for_run("r1")
    assert [column.done for column in view.columns] == [10, 10]


async def test_a_control_that_does_not_apply_does_not_hide_an_outage(make_service, question_file: Path) -> None:
    def without_gold(question: Question) -> Answer:
        raise NotApplicable("the question names no gold passages")

    generator = ScriptedGenerator({"s3": right, "oracle": without_gold})
    for number in range(10):
        generator.fail("s3", f"q{number}", *[Unavailable("gone")] * 3)
    service = make_service(generator, max_consecutive_failures=4)
    methods = (MethodSpec("s3"), MethodSpec("oracle"))
    await service.create_run(spec(question_file, methods=methods, concurrency=1))
    view = await service.wait_for_run("r1")
    assert view.record.state is EvaluationState.FAILED
    assert "4 consecutive episodes" in view.record.error
    assert generator.calls["s3", "q3"] == 3
    assert ("s3", "q4") not in generator.calls


async def test_an_equal_answer_is_judged_once(make_service, question_file: Path) -> None:
    generator = ScriptedGenerator({"s3": wrong, "rag": wrong})
    service = make_service(generator)
    await service.create_run(spec(question_file))
    await service.wait_for_run("r1")
    assert len(generator.judged) == 10


async def test_an_interrupted_run_continues_at_the_next_start(
    make_service, store: RunStore, question_file: Path
) -> None:
    generator = ScriptedGenerator({"s3": right, "rag": wrong})
    first = make_service(generator)
    watching = first.watch_run("r1")
    await first.create_run(spec(question_file, concurrency=1))
    while (await anext(watching)).columns[0].done < 3:
        pass
    first.begin_stop()
    await asyncio.gather(*first._tasks.values(), return_exceptions=True)
    assert store.run("r1").state is EvaluationState.RUNNING
    done_before = dict(generator.calls)
    second = make_service(generator)
    await second.start()
    view = await second.wait_for_run("r1")
    assert view.record.state is EvaluationState.FINISHED
    assert [column.done for column in view.columns] == [10, 10]
    repeated = [pair for pair, count in generator.calls.items() if count > 1]
    assert len(done_before) >= 6
    assert len(repeated) <= 1  # only the episode that was in flight


async def test_a_watch_ends_with_the_final_numbers(make_service, question_file: Path) -> None:
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}))
    await service.create_run(spec(question_file))
    views = [view async for view in service.watch_run("r1")]
    assert views[-1].record.state is EvaluationState.FINISHED
    assert views[-1].columns[0].done == 10
    done = [view.columns[0].done for view in views]
    assert done == sorted(done)


async def test_controls_are_added_if_the_generator_serves_them(make_service, store: RunStore, question_file) -> None:
    rules = {"s3": right, "rag": wrong, "direct": wrong, "oracle": right}
    service = make_service(ScriptedGenerator(rules), FixedPassages({f"p{n}a" for n in range(10)} | {"p0b"}))
    await service.create_run(spec(question_file, controls=True))
    view = await service.wait_for_run("r1")
    assert [column.label for column in view.columns] == ["s3", "rag", "direct", "oracle"]
    assert view.record.index_generation == "generation-1"
    checked, missing = store.missing_gold("r1")
    assert (checked, len(missing)) == (20, 9)


async def test_no_commit_of_a_run_blocks_the_event_loop(
    make_service, store: RunStore, question_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: dict[str, int] = {}
    for name in ("create_run", "set_missing_gold", "close_run", "reopen_run"):

        def record(*arguments: object, name: str = name, write: Callable[..., object] = getattr(store, name)) -> object:
            waiting[name] = threading.get_ident()
            return write(*arguments)

        monkeypatch.setattr(store, name, record)
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}), FixedPassages(set()))
    for retry_failures in (False, True):
        await service.create_run(spec(question_file, controls=True), retry_failures=retry_failures)
        await service.wait_for_run("r1")
    assert waiting.keys() == {"create_run", "set_missing_gold", "close_run", "reopen_run"}
    assert threading.get_ident() not in waiting.values()


async def test_questions_outside_the_folder_are_refused(make_service, question_file: Path) -> None:
    folder = question_file.parent / "allowed"
    folder.mkdir()
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}), questions_dir=folder)
    with pytest.raises(Forbidden):
        await service.create_run(spec(question_file))
    with pytest.raises(Forbidden):
        await service.create_run(spec(Path("../questions.jsonl")))
    (folder / "inside.jsonl").write_text(question_file.read_text())
    await service.create_run(spec(Path("inside.jsonl")))


async def test_without_a_folder_of_questions_no_file_can_be_named(make_service, question_file: Path) -> None:
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}), questions_dir=None)
    for path in (question_file, Path("questions.jsonl"), Path("/dev/zero")):
        with pytest.raises(Forbidden, match="set questions_dir"):
            await service.create_run(spec(path))


async def test_a_link_out_of_the_folder_and_special_files_in_it_are_refused(make_service, question_file: Path) -> None:
    folder = question_file.parent / "allowed"
    folder.mkdir()
    (folder / "link.jsonl").symlink_to(question_file)
    os.mkfifo(folder / "pipe")
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}), questions_dir=folder)
    with pytest.raises(Forbidden):
        await service.create_run(spec(Path("link.jsonl")))
    with pytest.raises(NotFound):
        await service.create_run(spec(Path("pipe")))


async def test_questions_without_golden_answers_run_only_if_allowed(make_service, tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text('{"id": "a", "question": "Why?"}\n')
    service = make_service(ScriptedGenerator({"rag": wrong}))
    one = (MethodSpec("rag"),)
    with pytest.raises(InvalidRequest, match="line 1"):
        await service.create_run(spec(path, methods=one))
    await service.create_run(spec(path, methods=one, allow_unscored=True))
    view = await service.wait_for_run("r1")
    assert view.columns[0].done == 1
    assert "accuracy" not in view.columns[0].estimates


@pytest.mark.parametrize("format", ["html", "json"])
async def test_a_run_has_a_report_in_both_formats(make_service, question_file: Path, format: str) -> None:
    service = make_service(ScriptedGenerator({"s3": right, "rag": wrong}))
    await service.create_run(spec(question_file))
    await service.wait_for_run("r1")
    content = await service.report("r1", format)
    assert b"s3" in content
    with pytest.raises(InvalidRequest):
        await service.report("r1", "pdf")
    with pytest.raises(NotFound):
        await service.report("r2", format)
