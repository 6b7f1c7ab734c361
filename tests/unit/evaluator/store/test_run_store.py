"""Do results survive, and are two writers and strange files refused?"""

import sqlite3
from pathlib import Path

import pytest

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, NotFound, Unavailable
from services.evaluator.runs.episode import Episode, SearchStep
from services.evaluator.runs.evaluation_run import MethodSpec, RunRecord, RunSpec, RunState
from services.evaluator.store.run_store import RunStore, with_times

QUESTION = Question("q1", "Who?", ("Ann",), "nq", {"world": "w"}, {"hops": "2"}, ("p1",))
FULL = Episode(
    label="s3",
    question_id="q1",
    answer="Ann",
    correct=True,
    decided_by="span",
    judge_version="j1",
    exact_match=1.0,
    f1=0.5,
    gold_recall=None,
    documents=("p1", "p2"),
    steps=(SearchStep(0, "Who?", ("p1", "p2"), ("p1",)), SearchStep(1, "more", ())),
    searches=2,
    prompt_tokens=3,
    completion_tokens=4,
    context_tokens=5,
    seconds=0.25,
    stop_reason="completed",
    policy_version="v7",
    trajectory=b"\x00\x01",
)
FAILED = Episode(label="rag", question_id="q1", failure="unavailable", error="gone")


def record(run_id: str = "r1") -> RunRecord:
    spec = RunSpec(run_id, "q.jsonl", (MethodSpec("s3", temperature=0.5), MethodSpec("rag", seed=3)))
    return with_times(RunRecord(spec, spec.methods, "abc", 1, index_generation="g1"))


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
    assert store.answered_keys("r1") == {("s3", "q1")}


def test_a_later_row_replaces_a_failed_one(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    store.append("r1", FAILED)
    done = Episode(label="rag", question_id="q1", answer="Ann", correct=True)
    store.append("r1", done).result()
    assert store.episodes("r1") == [done]


def test_the_state_changes_after_every_queued_row(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    for number in range(500):
        store.append("r1", Episode(label="s3", question_id=f"q{number}"))
    ended = store.set_state("r1", RunState.FAILED, "why")
    assert (ended.state, ended.error) == (RunState.FAILED, "why")
    assert ended.finished
    assert len(store.episodes("r1")) == 500


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


def test_files_that_are_no_store_are_refused(tmp_path: Path) -> None:
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


def test_after_a_failed_commit_every_write_fails(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    with pytest.raises(Unavailable, match="cannot be stored"):
        store.create_run(record(), [QUESTION])
    with pytest.raises(Unavailable, match="cannot be stored"):
        store.append("r1", FULL)


def test_missing_gold_is_kept(store: RunStore) -> None:
    store.create_run(record(), [QUESTION])
    assert store.missing_gold("r1") == (0, frozenset())
    store.set_missing_gold("r1", 2, ["p1"])
    assert store.missing_gold("r1") == (2, {"p1"})
