"""Results survive restarts; a second writer, foreign files and unusable rows are refused."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from searchrl.domain.answer import Answer, Provenance, SearchStep, Usage, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, InvalidRequest, NotFound, Unavailable
from searchrl.platform.health import Health
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EndReason, EvaluationState, MethodSpec, RunRecord, RunSpec
from services.evaluator.scoring.measures import summarize
from services.evaluator.store.journal import Journal
from services.evaluator.store.row_codec import episode_from_row, episode_to_row
from services.evaluator.store.run_store import RunStore, stamp_created

QUESTION = Question("q1", "Who?", ("Ann",), "nq", {"world": "w"}, {"hops": "2"}, ("p1",))
FULL = Episode(
    label="s3",
    question_id="q1",
    answer=Answer(
        text="Ann",
        documents=("p1", "p2"),
        cut=("p1",),
        left_out=("p3", "p4"),
        finish_reason="length",
        usage=Usage(3, 4, 5, 30, 40),
        provenance=Provenance("m", "s", "v7", ("g1", "g2"), "bm25", 3, "t", 10, 11, 0.5),
        steps=(SearchStep(0, "Who?", ("p1", "p2"), ("p1",)), SearchStep(1, "more", ())),
        searches=2,
        stop_reason="completed",
        policy_version="v7",
        seconds=0.25,
    ),
    verdict=Verdict(True, "span", "j1", 50, 6),
    exact_match=1.0,
    f1=0.5,
    gold_recall=None,
    trajectory=b"\x00\x01",
)
FAILED = Episode(label="rag", question_id="q1", failure="unavailable", error="gone")


def record(run_id: str = "r1") -> RunRecord:
    spec = RunSpec(run_id, "q.jsonl", (MethodSpec("s3", temperature=0.5), MethodSpec("rag", seed=3)))
    return stamp_created(RunRecord(spec, spec.methods, "abc", 1, index_generation="g1"))


def test_everything_is_read_back_as_it_was(store: RunStore) -> None:
    original = record()
    store.create_run(original, [QUESTION])
    store.append("r1", FULL, [Passage("p1", "T", "text")])
    store.append("r1", FAILED).result()
    assert store.run("r1") == original
    assert store.questions("r1") == [QUESTION]
    assert store.episodes("r1") == [FULL, FAILED]
    assert store.episodes("r1", "rag") == [FAILED]
    assert store.passages("r1", ["p1", "p1", "p2"]) == {"p1": Passage("p1", "T", "text")}


def test_a_later_row_replaces_a_failed_one(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    store.append("r1", FAILED)
    done = Episode("rag", "q1", Answer("Ann"), Verdict(True, "span", ""))
    store.append("r1", done).result()
    assert store.episodes("r1") == [done]


def test_the_state_changes_after_every_queued_row(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    for number in range(500):
        store.append("r1", Episode(label="s3", question_id=f"q{number}"))
    changes = {
        "state": EvaluationState.FAILED,
        "error": "why",
        "reason": EndReason.OUTAGE,
        "provenance": {"mode": ("a", "b")},
    }
    ended = store.close_run(replace(store.run("r1"), **changes))
    assert store.run("r1") == ended
    assert (ended.state, ended.error, ended.reason) == (EvaluationState.FAILED, "why", EndReason.OUTAGE)
    assert ended.finished
    assert len(store.episodes("r1")) == 500


def test_a_run_continues_under_what_the_new_request_may_change(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    store.close_run(replace(store.run("r1"), state=EvaluationState.FAILED, error="why", reason=EndReason.CHANGED))
    asked = replace(record().spec, concurrency=3, allow_changes=True)
    store.reopen_run(store.run("r1"), asked)
    running = store.run("r1")
    assert (running.state, running.error, running.reason, running.finished) == (
        EvaluationState.RUNNING,
        "",
        EndReason.NONE,
        "",
    )
    assert (running.spec.concurrency, running.spec.allow_changes) == (3, True)


def test_an_unknown_run_is_not_found(store: RunStore) -> None:
    with pytest.raises(NotFound):
        store.run("none")
    assert store.find_run("none") is None
    assert store.runs() == []


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path, store: RunStore) -> None:
    with pytest.raises(ConfigurationError, match="another evaluator"):
        RunStore.open(tmp_path / "results.sqlite")
    store.create_run(record(), [QUESTION])
    reader = RunStore.open_for_reading(tmp_path / "results.sqlite")
    assert [run.spec.run_id for run in reader.runs()] == ["r1"]
    with pytest.raises(ConfigurationError, match="reading only"):
        reader.append("r1", FULL)


def test_a_closed_store_can_be_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    first = RunStore.open(path)
    first.create_run(record(), [QUESTION])
    first.append("r1", FULL)
    first.close()
    with pytest.raises(Unavailable, match="closed"):
        first.append("r1", FULL)
    second = RunStore.open(path)
    assert second.episodes("r1") == [FULL]
    second.close()


def test_files_that_are_not_a_store_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("hello " * 1000)
    with pytest.raises(ConfigurationError, match="not a result store"):
        RunStore.open(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE something (x)")
    with pytest.raises(ConfigurationError, match="not a result store"):
        RunStore.open(other)
    with pytest.raises(ConfigurationError, match="no result store"):
        RunStore.open_for_reading(tmp_path / "none.sqlite")


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    RunStore.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(ConfigurationError, match="version 99"):
        RunStore.open(path)


def test_a_store_of_the_version_before_is_converted_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    store = RunStore.open(path)
    store.create_run(record(), [QUESTION])
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE runs DROP COLUMN facts")
        connection.execute("UPDATE schema_version SET version = 1")
    with pytest.raises(ConfigurationError, match="older schema version 1"):
        RunStore.open_for_reading(path)
    converted = RunStore.open(path)
    assert converted.run("r1").questions_sha256 == "abc"
    converted.close()


def test_rows_of_an_older_store_do_not_say_whether_they_were_cut() -> None:
    *before, text, trajectory = episode_to_row("r1", FULL)
    body = json.loads(str(text))
    for name in ("finish_reason", "cut", "left_out"):
        del body[name]
    older = episode_from_row((*before, json.dumps(body), trajectory))  # type: ignore[arg-type]
    assert older == replace(FULL, answer=replace(FULL.answer, finish_reason="", cut=(), left_out=()))
    estimates = summarize([older, FULL])
    assert (estimates["cut_answers"].mean, estimates["cut_answers"].count) == (1.0, 1)
    assert estimates["cut_documents"].mean == 3.0  # one is cut, two are left out


@pytest.mark.parametrize(
    "row",
    [
        replace(FULL, answer=replace(FULL.answer, seconds="\ud800")),  # a lone surrogate: no UTF-8
        replace(FULL, answer=replace(FULL.answer, text="\ud800")),
        replace(FULL, verdict=Verdict(cast(bool, 1 << 70), "", "")),
        replace(FULL, answer=replace(FULL.answer, searches=1 << 70)),
        replace(FULL, question_id=object()),
    ],
    ids=["text", "answer", "integer", "integer of the body", "type"],
)
def test_a_row_that_cannot_be_stored_fails_alone(store: RunStore, row: Episode) -> None:
    store.create_run(record(), [QUESTION])
    before, bad, after = (
        store.append("r1", replace(FULL, question_id="before")),
        store.append("r1", row),
        store.append("r1", replace(FULL, question_id="after")),
    )
    with pytest.raises(InvalidRequest, match="the row cannot be stored"):
        bad.result()
    before.result()
    after.result()
    assert [episode.question_id for episode in store.episodes("r1")] == ["before", "after"]


def limit_pages(store: RunStore, pages: int) -> None:
    """Behave like a full disk: SQLite may not enlarge the file."""
    store._write(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}")).result()


@pytest.mark.parametrize("journal", [Journal.WAL, Journal.ROLLBACK])
def test_a_full_disk_makes_the_service_not_ready_until_there_is_space(tmp_path: Path, journal: Journal) -> None:
    health = Health()
    health.set_ready()
    store = RunStore.open(tmp_path / "s.sqlite", journal, health)
    store.create_run(record(), [QUESTION])
    limit_pages(store, 1)
    large = Passage("p9", "T", "x" * 1_000_000)
    with pytest.raises(Unavailable, match=r"cannot be stored: .*full"):
        store.append("r1", FULL, [large]).result()
    assert not health.ready and "result store" in health.reason
    assert store.is_failing
    limit_pages(store, 1_000_000)
    assert health.ready
    store.append("r1", FULL, [large]).result()  # the passage of the failed commit is sent again
    assert store.episodes("r1") == [FULL]
    assert store.passages("r1", ["p9"]) == {"p9": large}
    store.close()


def test_the_number_of_remembered_passages_is_bounded(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.evaluator.store.run_store.MAX_REMEMBERED_PASSAGES", 10)
    store.create_run(record(), [QUESTION])
    for number in range(30):
        store.append("r1", replace(FULL, question_id=f"q{number}"), [Passage(f"p{number}", "", "")]).result()
    assert len(store._stored_passages) == 10
    assert len(store.passages("r1", [f"p{number}" for number in range(30)])) == 30


def test_missing_gold_is_kept(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    assert store.missing_gold("r1") == (0, frozenset())
    store.set_missing_gold("r1", 2, ["p1"])
    assert store.missing_gold("r1") == (2, {"p1"})
