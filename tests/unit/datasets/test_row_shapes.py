"""Rows in the layouts of published data sets. The keys are those of the data sets, the texts are invented."""

import contextlib
import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from searchrl.datasets.question_file import read_questions
from searchrl.datasets.question_row import question_from_row
from searchrl.datasets.row import BadRow, Row
from searchrl.datasets.shapes import READ_KEYS, ROW_SHAPES
from searchrl.datasets.shapes.base import RowFields
from searchrl.domain.question import Choice
from searchrl.errors import InvalidRequest
from tests.unit.datasets.written_questions import read, read_parquet

WATER_AND_FIRE = (Choice("A", "water"), Choice("B", "fire"))


KEYED = {
    "FlashRAG": {"id": "test_0", "question": "Who?", "golden_answers": ["Norr", "V. Norr"], "metadata": {"k": 1}},
    "NQ-open": {"question": "Who?", "answer": ["Norr", "V. Norr"]},
    "HotpotQA": {"_id": "5a8b", "question": "Who?", "answer": "Norr", "context": {"title": ["T"]}},
    "2WikiMultihopQA": {"_id": "f86b", "question": "Who?", "answer": "Norr", "answer_id": "Q1", "evidences": []},
    "MuSiQue": {"id": "2hop__1", "question": "Who?", "answer": "Norr", "answer_aliases": ["V. Norr"], "paragraphs": []},
    "PopQA": {"id": 4222, "question": "Who?", "obj": "Norr", "possible_answers": '["Norr", "V. Norr"]'},
    "PopQA by pandas": {"id": 4222, "question": "Who?", "possible_answers": "['Norr', 'V. Norr']"},
    "TriviaQA": {"question_id": "tc_1", "question": "Who?", "answer": {
        "value": "Norr", "aliases": ["V. Norr"], "normalized_aliases": ["norr"], "type": "WikipediaEntity"
    }},
    "TriviaQA's own file": {"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "Norr", "Aliases": ["V."]}},
    "SQuAD": {"id": "56be", "question": "Who?", "context": "c", "answers": {"text": ["Norr"], "answer_start": [3]}},
    "SQuAD as objects": {"id": "56be", "question": "Who?", "answers": [{"text": "Norr", "answer_start": 3}]},
    "Bamboogle": {"Question": "Who?", "Answer": "Norr"},
    "KILT": {"id": "k", "input": "Who?", "output": [{"answer": "Norr"}, {"provenance": [{"title": "T"}]}]},
    "AmbigQA": {"id": "a", "question": "Who?", "annotations": [
        {"type": "multipleQAs", "qaPairs": [{"question": "Who a?", "answer": ["Norr"]}, {"answer": ["V. Norr"]}]}
    ]},
    "AmbigQA of the Hub": {"id": "a", "question": "Who?", "annotations": {
        "type": ["singleAnswer"], "answer": [["Norr", "V. Norr"]], "qaPairs": [{"question": [], "answer": []}]
    }},
    "ASQA": {"sample_id": "-1", "ambiguous_question": "Who?", "annotations": [{"long_answer": "Long."}], "qa_pairs": [
        {"question": "Who a?", "short_answers": ["Norr"]}, {"question": "Who b?", "short_answers": ["V. Norr"]}
    ]},
    "TruthfulQA": {"question": "Who?", "best_answer": "Norr", "correct_answers": ["V. Norr"]},
    "Search-R1 lines": {
        "id": "train_0", "question": "Who?", "data_source": "nq", "prompt": [{"role": "user", "content": "x"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Norr"]}}, "extra_info": {"index": 0},
    },
    "prompt of one question": {
        "prompt": [{"role": "user", "content": "Who?"}], "reward_model": {"ground_truth": "Norr"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KEYED)
def test_rows_of_data_sets_are_read(tmp_path: Path, name: str) -> None:
    row = KEYED[name]
    (question,) = read(tmp_path, [row])
    assert question.text == question.retrieval_query == "Who?"
    assert question.golden_answers[0] == "Norr"
    has_aliases = any(alias in json.dumps(row) for alias in ("V. Norr", '"V."'))
    assert len(question.golden_answers) >= 1 + has_aliases
    (from_parquet,) = read_parquet(tmp_path, row)
    assert (from_parquet.id, from_parquet.golden_answers) == (question.id, question.golden_answers)


DEEP_LIST, DEEP_OBJECT = "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    "columns",
    [
        {"choices": DEEP_LIST, "answer": "A"},
        {"choices": DEEP_OBJECT, "answer": "A"},
        {"filters": DEEP_OBJECT, "answer": "Norr"},
        {"metadata": DEEP_OBJECT, "answer": "Norr"},
        {"reward_model": DEEP_OBJECT},
        {"question": None, "prompt": DEEP_LIST, "reward_model": {"ground_truth": "Norr"}},
    ],
    ids=["list of options", "object of options", "filters", "metadata", "reward_model", "prompt"],
)
def test_a_column_of_json_that_is_nested_too_deep_is_an_error_of_its_row(tmp_path: Path, columns: dict) -> None:
    with pytest.raises(InvalidRequest, match="entry 1: "):
        read(tmp_path, [{"question": "Who?", **columns}])


def test_an_answer_that_looks_like_json_nested_too_deep_is_a_text(tmp_path: Path) -> None:
    (question,) = read(tmp_path, [{"question": "Who?", "reward_model": {"ground_truth": DEEP_OBJECT}}])
    assert question.golden_answers == (DEEP_OBJECT,)


@pytest.mark.parametrize(
    ("name", "id"),
    [("HotpotQA", "5a8b"), ("PopQA", "4222"), ("TriviaQA's own file", "tc_1"), ("Search-R1 lines", "nq--0")],
)
def test_the_ids_of_the_data_sets_are_kept(tmp_path: Path, name: str, id: str) -> None:
    assert read(tmp_path, [KEYED[name]])[0].id == id


def test_truth_values_are_yes_and_no(tmp_path: Path) -> None:
    strategy_qa = [
        {"qid": "a", "question": "Is it?", "answer": True},
        {"qid": "b", "question": "Is it?", "answer": False},
    ]
    assert [question.golden_answers for question in read(tmp_path, strategy_qa)] == [("yes",), ("no",)]
    assert read(tmp_path, [{"question": "Is it?", "golden_answers": [False]}])[0].golden_answers == ("no",)


def test_the_options_of_medmcqa_are_read_and_a_counted_answer_is_refused(tmp_path: Path) -> None:
    row = {"id": "m", "question": "Which?", "opa": "water", "opb": "fire", "opc": None, "cop": "b"}
    (question,) = read(tmp_path, [row])
    assert (question.choices, question.golden_answers) == (WATER_AND_FIRE, ("B", "fire"))
    assert read(tmp_path, [{**row, "cop": 1, "answer": "A"}])[0].golden_answers == ("A", "water")
    for right in (1, 1.0, "1"):
        with pytest.raises(InvalidRequest, match=r"entry 1: \"cop\" counts the options from 0 in some copies"):
            read(tmp_path, [{**row, "cop": right}])


def test_splits_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    rows = {"q1": {"question": "Who?", "answer": "Norr"}}
    assert len(read(tmp_path, {"dev": rows})) == 1
    with pytest.raises(InvalidRequest, match=r"several splits \('train', 'dev'\)"):
        read(tmp_path, {"train": rows, "dev": rows})


def test_the_articles_of_squad_are_read(tmp_path: Path) -> None:
    article = {"title": "T", "paragraphs": [{"context": "c", "qas": [
        {"id": "a", "question": "Who?", "answers": [{"text": "Norr", "answer_start": 0}]},
        {"id": "b", "question": "Where?", "answers": [{"text": "Ystad", "answer_start": 0}] * 2},
    ]}]}  # fmt: skip
    questions = read(tmp_path, {"version": "1.1", "data": [article]})
    assert [(question.id, question.golden_answers) for question in questions] == [("a", ("Norr",)), ("b", ("Ystad",))]
    article["paragraphs"][0]["qas"].append({"id": "c", "question": "Why?", "answers": [], "is_impossible": True})  # type: ignore
    with pytest.raises(InvalidRequest, match=r"entry 1 of 'data', paragraph 1, question 3: question 'c' has no golden"):
        read(tmp_path, {"version": "2.0", "data": [article]})


def test_the_benchmark_of_mirage_is_read(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": {"A": "water", "B": "fire"}, "answer": "B"}
    questions = read(tmp_path, {"medqa": {"0000": row}, "mmlu": {"anatomy-0": row}})
    assert [(question.id, question.source) for question in questions] == [
        ("medqa:0000", "medqa"), ("mmlu:anatomy-0", "mmlu"),
    ]  # fmt: skip
    assert questions[0].text == "Which?\nOptions:\nA: water\nB: fire"
    assert questions[0].retrieval_query == "Which?"
    assert questions[0].choices == WATER_AND_FIRE
    assert questions[0].golden_answers == ("B", "fire")


def test_rows_by_id_are_read(tmp_path: Path) -> None:
    (question,) = read(tmp_path, {"2164": {"QUESTION": "Is it?", "final_decision": "yes", "LONG_ANSWER": "Because."}})
    assert (question.id, question.text, question.golden_answers) == ("2164", "Is it?", ("yes",))


def test_options_in_the_text_of_s3s_medical_questions_are_options(tmp_path: Path) -> None:
    row = {"question": "Which?\nOptions:\nA: water\nB: fire\n", "golden_answers": ["B: fire"], "source": "medqa"}
    (question,) = read(tmp_path, [row])
    assert (question.choices, question.golden_answers) == (WATER_AND_FIRE, ("B", "fire"))
    assert (question.text, question.retrieval_query) == ("Which?\nOptions:\nA: water\nB: fire", "Which?")


@pytest.mark.parametrize(
    "row",
    [
        {"question": {"stem": "Which?", "choices": [{"label": "A", "text": "water"}, {"label": "B", "text": "fire"}]},
         "answerKey": "B"},
        {"question": "Which?", "choices": {"text": ["water", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question_stem": "Which?", "choices": {"text": ["water", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Which?", "choices": ["water", "fire"], "answer": 1},
        {"question": "Which?", "options": {"A": "water", "B": "fire"}, "answer": "fire", "answer_idx": "B"},
    ],
    ids=["ARC", "ARC on the hub", "OpenBookQA", "MMLU", "MedQA"],
)  # fmt: skip
def test_multiple_choice_rows_of_data_sets_are_read(tmp_path: Path, row: dict) -> None:
    (question,) = read(tmp_path, [row])
    assert (question.choices, question.golden_answers) == (WATER_AND_FIRE, ("B", "fire"))
    if isinstance(row.get("question"), str):
        assert read_parquet(tmp_path, row)[0].golden_answers == ("B", "fire")


def test_the_options_that_another_row_of_a_parquet_file_has_are_not_this_ones(tmp_path: Path) -> None:
    three = {"question": "Which of three?", "options": {"A": "a", "B": "b", "C": "c"}, "answer": "C"}
    two = {"question": "Which?", "options": {"A": "water", "B": "fire"}, "answer": "B"}
    questions = read_parquet(tmp_path, three, two)
    assert [len(question.choices) for question in questions] == [3, 2]


def test_maps_dictionaries_dates_and_bytes_of_parquet_are_read(tmp_path: Path) -> None:
    texts = pa.map_(pa.string(), pa.string())
    table = pa.table(
        {
            "id": pa.array([0], pa.int32()),
            "question": pa.array(["Which?"]).dictionary_encode(),
            "options": pa.array([[("A", "water"), ("B", "fire")]], texts),
            "filters": pa.array([[("world", "w1")]], texts),
            "answer": pa.array([b"B"]),
        }
    )
    parquet.write_table(table, tmp_path / "q.parquet")
    (question,) = read_questions(tmp_path / "q.parquet").questions
    assert (question.id, question.choices, question.golden_answers) == ("0", WATER_AND_FIRE, ("B", "fire"))
    assert question.filters == {"world": "w1"}
    dates = pa.table({"question": ["When?"], "answer": pa.array([dt.date(1901, 5, 3)])})
    parquet.write_table(dates, tmp_path / "dates.parquet")
    assert read_questions(tmp_path / "dates.parquet").questions[0].golden_answers == ("1901-05-03",)


def test_a_parquet_file_without_questions_names_its_columns(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"frage": ["Wer?"], "antwort": ["Norr"]}), tmp_path / "q.parquet")
    with pytest.raises(InvalidRequest, match="found the columns frage, antwort"):
        read_questions(tmp_path / "q.parquet")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["A", "yes", "[1]", "{}", "Question: x?"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "target", "label", "role", "content", "value", "A", "question"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


class TriviaCardShape:
    """Rows of a data set that no shape in the registry reads: a card with a front and a back."""

    name = "cards"
    keys: frozenset[str] = frozenset({"front", "back"})

    def matches(self, row: Row) -> bool:
        return "front" in row

    def read(self, row: Row) -> RowFields:
        return RowFields(str(row.get("front")), answers=[row.get("back")])


def test_a_shape_with_a_line_in_the_registry_reads_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"Front": "Who?", "Back": "Norr"}, {"question": "Where?", "answer": "Ystad"}]
    with pytest.raises(InvalidRequest, match='entry 1: needs a non-empty "question"'):
        read(tmp_path, rows)
    monkeypatch.setattr("searchrl.datasets.question_row.ROW_SHAPES", (TriviaCardShape(), *ROW_SHAPES))
    assert [(each.text, each.golden_answers) for each in read(tmp_path, rows)] == [
        ("Who?", ("Norr",)),
        ("Where?", ("Ystad",)),
    ]


rows_of_any_kind = st.dictionaries(st.sampled_from(sorted(READ_KEYS)) | st.text(), json_values, max_size=8)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(rows_of_any_kind)
def test_any_row_is_a_question_or_refused_with_a_reason(row: dict) -> None:
    try:
        question = question_from_row(Row(row)).question
    except BadRow as error:
        assert str(error)
        return
    assert question.id and question.text and question.generator_text and question.retrieval_query
    assert all(golden.strip() for golden in question.golden_answers)
    if question.choices and question.golden_answers:
        assert set(question.golden_answers) <= {
            part for choice in question.choices for part in (choice.label, choice.text)
        }


@settings(deadline=None, max_examples=300)
@given(rows_of_any_kind | json_values)
def test_any_json_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content, indent=1))
    with contextlib.suppress(InvalidRequest):
        assert read_questions(path, need_golden_answers=False).questions
