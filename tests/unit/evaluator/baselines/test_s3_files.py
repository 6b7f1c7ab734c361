"""The files of s3's programs are read and written in the forms that these programs use."""

import json
from pathlib import Path

import pytest

from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question, with_options
from searchrl.errors import InvalidRequest, NotFound
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion
from services.evaluator.baselines.s3_files import (
    StoredContext,
    export_output_sequences,
    export_rag_cache,
    import_output_sequences,
    import_rag_cache,
    parse_context,
)


def test_a_rag_cache_is_read_for_our_questions(tmp_path: Path) -> None:
    path = tmp_path / "rag_cache.json"
    path.write_text(
        json.dumps(
            {
                "nq": {"who?": {"answer": "Ann", "score": 1, "em_score": 0}},
                "hotpotqa": {"where?": {"answer": "Rome", "score": 0, "em_score": 0}},
            }
        )
    )
    questions = [
        Question("a", "who", source="nq"),  # s3 appends the question mark
        Question("b", "where?"),  # no source: looked up in all
        Question("c", "where?", source="nq"),  # other source: absent
    ]
    cache, absent = import_rag_cache(path, questions)
    assert cache.baseline("a") == Baseline("who", "Ann", True, False, "nq")
    assert cache.baseline("b").source == "hotpotqa"
    assert absent == ["c"]


def test_an_exported_rag_cache_is_read_back_unchanged(tmp_path: Path) -> None:
    baselines = {"a": Baseline("who?", "Ann", True, True, "nq"), "b": Baseline("where", "Rome", False, False, "nq")}
    export_rag_cache(BaselineCache(BaselineVersion(), baselines), tmp_path / "c.json")
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["nq"]["where?"] == {"answer": "Rome", "score": 0, "em_score": 0}
    questions = [Question("a", "who?", source="nq"), Question("b", "where", source="nq")]
    cache, absent = import_rag_cache(tmp_path / "c.json", questions)
    assert dict(cache.items()) == baselines
    assert absent == []


def read_score(tmp_path: Path, entry: object) -> Baseline:
    path = tmp_path / "rag_cache.json"
    path.write_text(json.dumps({"nq": {"who?": entry}}))
    return import_rag_cache(path, [Question("a", "who", source="nq")])[0].baseline("a")


@pytest.mark.parametrize(
    ("score", "correct"),
    [(1, True), (0, False), (1.0, True), ("1", True), ("1.0", True), ("0.0", False), (True, True), ("True", True),
     ("false", False)],
)  # fmt: skip
def test_a_score_is_read_in_every_spelling(tmp_path: Path, score: object, correct: bool) -> None:
    baseline = read_score(tmp_path, {"answer": "Ann", "score": score, "em_score": score})
    assert (baseline.correct, baseline.exact_match) == (correct, correct)


@pytest.mark.parametrize(("answer", "read"), [(None, ""), (1969, "1969"), ("Ann", "Ann")])
def test_an_answer_is_a_text_and_a_null_is_an_empty_one(tmp_path: Path, answer: object, read: str) -> None:
    assert read_score(tmp_path, {"answer": answer, "score": 0}).answer == read


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"answer": "x", "score": "good"}, "the entry of 'who' has no usable \"score\": found 'good', must be 0 or 1"),
        ({"answer": "x", "score": None}, 'has no usable "score": found null'),
        ({"answer": "x", "score": 0.5}, 'has no usable "score": found 0.5'),
        ({"answer": "x", "score": float("nan")}, 'has no usable "score": found nan'),
        ({"answer": "x"}, 'has no usable "score": found null'),
        ({"score": 1}, "has no \"answer\": found an object with 'score'"),
        ({"answer": ["x"], "score": 1}, 'has no usable "answer": found a list of 1'),
        ("x", "the entry of 'who?' in 'nq' is 'x', not an object"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, entry: object, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_score(tmp_path, entry)
    assert sentence in str(caught.value)


def test_keys_that_end_with_a_line_end_are_found(tmp_path: Path) -> None:
    path = tmp_path / "rag_cache.json"
    key = "which drug\nOptions:\nA: x\nB: y\n"
    path.write_text(json.dumps({"medqa": {key: {"answer": "y", "score": 1}}}))
    choices = (Choice("A", "x"), Choice("B", "y"))
    question = Question("1", with_options("which drug", choices), ("B", "y"), "medqa", choices=choices)
    cache, absent = import_rag_cache(path, [question])
    assert absent == [] and cache.rag_correct("1")


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"nq": 3}', '{"nq": {"who?": {"score": 1}}}', '{"nq": {"who?": {"answer": "x", "score": "y"}}}'],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest):
        import_rag_cache(path, [Question("a", "who?", source="nq")])
    with pytest.raises(NotFound):
        import_rag_cache(tmp_path / "none.json", [])


def test_the_three_ways_of_writing_documents_are_read() -> None:
    final = 'Doc 1 (Title: "Mercury (planet)")\nhot\n\nDoc 2 (Title: "B")\nsecond\nline\n\n'
    assert parse_context(final) == (Passage("1", "Mercury (planet)", "hot"), Passage("2", "B", "second\nline"))
    assert parse_context("Doc 1 (Title: A) one\nDoc 2 (Title: B) two\n") == (
        Passage("1", "A", "one"),
        Passage("2", "B", "two"),
    )
    assert parse_context('Doc 1(Title: "A") one\n') == (Passage("1", "A", "one"),)
    assert parse_context("") == ()


def test_exported_contexts_are_read_back_unchanged(tmp_path: Path) -> None:
    context = StoredContext(
        "who?", ("Ann",), (Passage("1", "A (x)", "one"), Passage("2", "B", "two Doc 3 of it")), "<query>"
    )
    path = tmp_path / "nq_output_sequences.json"
    export_output_sequences([context], path)
    assert import_output_sequences(path) == [context]
    path.write_text('{"who?": {"golden_answers": "Ann", "context_with_info": ""}}')
    assert import_output_sequences(path)[0].golden_answers == ("Ann",)
    path.write_text('{"who?": {}}')
    with pytest.raises(InvalidRequest, match="context_with_info"):
        import_output_sequences(path)
