"""Golden answers and options in all forms in which question files give them."""

import json
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.datasets.choices import choice_answers, read_choices, split_options
from searchrl.datasets.golden_answers import golden_texts
from searchrl.datasets.row import BadRow
from searchrl.domain.passage import metadata_text
from searchrl.domain.question import Choice

OPTIONS = (Choice("A", "a heater"), Choice("B", "a heavy coat"), Choice("C", "cold water"))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("Ystad", ["Ystad"]),
        (" Ystad\n", ["Ystad"]),
        (["Ystad", "Ystad", "City"], ["Ystad", "City"]),
        ([["Ystad", "City of Ystad"], ["Malmo"]], ["Ystad", "City of Ystad", "Malmo"]),
        (("a", None, "", "  ", float("nan"), "b"), ["a", "b"]),
        (None, []),
        ([], []),
        ([[]], []),
        (1969, ["1969"]),
        (1969.0, ["1969"]),
        (-0.0, ["0"]),
        (3.14, ["3.14"]),
        (1e300, ["1e+300"]),
        (float("inf"), []),
        (Decimal("2.50"), ["2.5"]),
        (date(1901, 5, 3), ["1901-05-03"]),
        (b"Ystad", ["Ystad"]),
        (True, ["yes"]),
        ([False], ["no"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ("[sic]", ["[sic]"]),
        ("{1, 2}", ["{1, 2}"]),
        ("{[1, 2]}", ["{[1, 2]}"]),
        ("{{}}", ["{{}}"]),
        ("{[1]: 2}", ["{[1]: 2}"]),
        ('"Heroes"', ['"Heroes"']),
        ("nan", ["nan"]),
        ({"target": ["a"], "question": "q", "gt_docs": ["d"]}, ["a"]),
        ('{"target": "a"}', ["a"]),
        ({"value": "a", "aliases": ["b"], "matched_wiki_entity_name": "", "type": "Wiki"}, ["a", "b"]),
        ({"Value": "a", "NormalizedAliases": ["b"]}, ["a", "b"]),
        ([{"text": "a", "answer_start": 1}, {"answer": "b"}, {"provenance": []}], ["a", "b"]),
    ],
)
def test_answers_become_texts(value: object, texts: list[str]) -> None:
    assert golden_texts(value) == texts


@pytest.mark.parametrize("value", [{"x": 1}, [{"spans": ["a"]}], object(), [[[[[[[["a"]]]]]]]]])
def test_answers_of_unknown_form_are_refused(value: object) -> None:
    with pytest.raises(BadRow):
        golden_texts(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=8
)


@given(json_values)
def test_no_golden_answer_is_blank_or_twice(value: object) -> None:
    try:
        texts = golden_texts(value)
    except BadRow:
        return
    assert all(text.strip() == text != "" for text in texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "value",
    [
        {"A": "a heater", "B": "a heavy coat", "C": "cold water"},
        {"A": "a heater", "B": "a heavy coat", "C": "cold water", "D": None},
        ["a heater", "a heavy coat", "cold water"],
        ["a heater", "a heavy coat", "cold water", None],
        ["A. a heater", "B. a heavy coat", "C. cold water"],
        ["(A) a heater", "(B) a heavy coat", "(C) cold water"],
        [{"label": choice.label, "text": choice.text} for choice in OPTIONS],
        [{"key": choice.label, "value": choice.text} for choice in OPTIONS],
        [{"A": "a heater"}, {"B": "a heavy coat"}, {"C": "cold water"}],
        [{"text": "a heater"}, {"text": "a heavy coat"}, {"text": "cold water"}],
        {"text": ["a heater", "a heavy coat", "cold water"], "label": ["A", "B", "C"]},
        {"text": ["a heater", "a heavy coat", "cold water"]},
        json.dumps({"A": "a heater", "B": "a heavy coat", "C": "cold water"}),
        "A. a heater\nB. a heavy coat\n\nC. cold water\n",
        json.dumps(["a heater", "a heavy coat", "cold water"]),
    ],
)  # fmt: skip
def test_options_are_read_in_all_their_forms(value: object) -> None:
    assert read_choices(value) == OPTIONS


def test_options_that_are_numbers_and_truth_values_are_texts() -> None:
    assert [choice.text for choice in read_choices([1969, 2.5, 3.0, True])] == ["1969", "2.5", "3", "yes"]
    assert [choice.label for choice in read_choices({1: "a", 2: "b"})] == ["1", "2"]
    assert [choice.label for choice in read_choices(["x"] * 27)][-2:] == ["Z", "27"]


@pytest.mark.parametrize("value", [None, [], {}, "", float("nan"), {"A": None}])
def test_a_question_may_have_no_options(value: object) -> None:
    assert read_choices(value) == ()


@pytest.mark.parametrize(
    "value",
    [
        "A or B", 3, ["a", ["b"]], ["a", None, "b"], [{"label": "A"}], {"text": ["a"], "label": []},
        {"A": "x", "a": "y"},
    ],
)  # fmt: skip
def test_options_of_unknown_form_are_refused(value: object) -> None:
    with pytest.raises(BadRow, match="choices"):
        read_choices(value)


@pytest.mark.parametrize(
    "answer", [2, "2", "C", "c", "cold water", "Cold Water.", "C: cold water", "(C) cold water", "C.", "C)"]
)
def test_an_answer_means_an_option_by_position_letter_or_text(answer: str | int) -> None:
    assert choice_answers([answer], OPTIONS) == ("C", "cold water")


def test_labels_that_are_numbers_win_over_positions_and_texts_over_digits() -> None:
    numbered = (Choice("1", "one"), Choice("2", "two"))
    assert choice_answers(["2"], numbered) == choice_answers([2], numbered) == ("2", "two")
    assert choice_answers(["1"], (Choice("A", "0"), Choice("B", "2"), Choice("C", "1"))) == ("C", "1")
    assert choice_answers(["yes"], (Choice("A", "Yes"), Choice("B", "No"))) == ("A", "Yes")
    assert choice_answers(["no"], (Choice("A", "True"), Choice("B", "False"))) == ("B", "False")
    assert choice_answers([1969], (Choice("A", "1968"), Choice("B", "1969"))) == ("B", "1969")


def test_several_options_may_be_right() -> None:
    assert choice_answers([0, "C"], OPTIONS) == ("A", "a heater", "C", "cold water")


@pytest.mark.parametrize("answer", ["D", 3, -1, "ice", "C: a heater", ""])
def test_an_answer_that_is_not_an_option_is_refused(answer: str | int) -> None:
    with pytest.raises(BadRow, match="is none of the options"):
        choice_answers([answer], OPTIONS)


def test_options_are_split_from_a_text_only_if_every_line_is_one() -> None:
    assert split_options("Which?\nOptions:\nA: a heater\nB: a heavy coat\nC: cold water\n") == ("Which?", OPTIONS)
    for text in ("Which?", "Which?\nOptions:\n", "Which?\nOptions:\nsee below\nA: x", "Which?\nOptions:\nA: x\nA: y"):
        assert split_options(text) == (text, ())


@pytest.mark.parametrize(
    ("value", "text"),
    [("w1", "w1"), (True, "true"), (False, "false"), (5, "5"), (5.0, "5"), (2.5, "2.5"), ([1, "a"], '[1,"a"]'),
     (None, None), (float("nan"), None)],
)  # fmt: skip
def test_a_metadata_value_has_one_text(value: object, text: str | None) -> None:
    assert metadata_text(value) == text
