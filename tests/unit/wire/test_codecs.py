"""Passages, questions, trajectories and provenance come back equal from their wire messages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.contracts.v1 import passage_pb2, provenance_pb2, question_pb2, trajectory_pb2
from searchrl.domain.answer import Provenance
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Choice, Question
from searchrl.domain.trajectory import InformationBlock, TokenKind, TokenRecord, Trajectory, Turn
from searchrl.wire.record_codec import (
    passage_from_wire,
    passage_to_wire,
    provenance_from_wire,
    provenance_to_wire,
    question_from_wire,
    question_to_wire,
    result_from_wire,
    result_to_wire,
)
from searchrl.wire.trajectory_codec import trajectory_from_wire, trajectory_to_wire

texts = st.text(st.characters(codec="utf-8"), max_size=20)
string_maps = st.dictionaries(texts, texts, max_size=3)
passages = st.builds(Passage, texts, texts, texts, string_maps)
results = st.builds(SearchResult, passages, st.floats(allow_nan=False), st.integers(1, 1000))
questions = st.builds(
    Question,
    id=texts,
    text=texts,
    golden_answers=st.lists(texts, max_size=3).map(tuple),
    source=texts,
    filters=string_maps,
    metadata=string_maps,
    gold_passage_ids=st.lists(texts, max_size=3).map(tuple),
    choices=st.lists(st.builds(Choice, texts, texts), max_size=3).map(tuple),
    generator_text=texts,
    retrieval_query=texts,
)
blocks = st.builds(
    InformationBlock,
    texts,
    st.lists(results, max_size=2).map(tuple),
    st.none() | st.lists(st.integers(1, 9), max_size=3).map(tuple),
)
turns = st.builds(
    Turn, texts, st.sampled_from(["search", "finish"]), st.lists(texts, max_size=2).map(tuple), st.booleans(), texts
)


@st.composite
def token_records(draw: st.DrawFn) -> TokenRecord:
    record = TokenRecord()
    for sampled in draw(st.lists(st.booleans(), max_size=8)):
        token = draw(st.integers(0, 2**31 - 1))
        if sampled:
            record.append_sampled([token], [draw(st.floats(-50, 0, width=32))], [draw(st.integers(0, 9))], [3])
        else:
            record.append_given([token], draw(st.sampled_from([TokenKind.PROMPT, TokenKind.OBSERVATION])))
    return record


trajectories = st.builds(
    Trajectory,
    question_id=texts,
    tokens=token_records(),
    turns=st.lists(turns, max_size=2),
    blocks=st.lists(blocks, max_size=2),
    documents=st.lists(passages, max_size=2).map(tuple),
    answer=st.none() | texts.filter(bool),
    stop_reason=texts,
    well_formed=st.booleans(),
)


@given(passages)
def test_a_passage_comes_back_equal_through_bytes(passage: Passage) -> None:
    message = passage_pb2.Passage.FromString(passage_to_wire(passage).SerializeToString())
    assert passage_from_wire(message) == passage


@given(results)
def test_a_search_result_keeps_its_score_to_the_last_bit(result: SearchResult) -> None:
    message = passage_pb2.SearchResult.FromString(result_to_wire(result).SerializeToString())
    assert result_from_wire(message) == result


@pytest.mark.parametrize("text", ["Which?", "Which?\nOptions:\nA: x\nB: y", "\nOptions:\nA: x", ""])
@pytest.mark.parametrize("given_text", ["", "Which?", "Which?\nOptions:\nA: x\nB: y"])
def test_the_texts_of_a_question_with_options_come_back_equal(text: str, given_text: str) -> None:
    choices = (Choice("A", "x"), Choice("B", "y"))
    question = Question("q", text, choices=choices, generator_text=given_text, retrieval_query=given_text)
    assert question_from_wire(question_to_wire(question)) == question


@given(questions)
def test_a_question_comes_back_equal_through_bytes(question: Question) -> None:
    message = question_pb2.Question.FromString(question_to_wire(question).SerializeToString())
    assert question_from_wire(message) == question


@settings(max_examples=60)
@given(trajectories)
def test_a_trajectory_comes_back_equal_through_bytes(trajectory: Trajectory) -> None:
    message = trajectory_pb2.Trajectory.FromString(trajectory_to_wire(trajectory).SerializeToString())
    assert trajectory_from_wire(message) == trajectory


def test_an_empty_selection_is_not_the_same_as_no_selection() -> None:
    trajectory = Trajectory("q", blocks=[InformationBlock("a", (), ()), InformationBlock("b", (), None)])
    returned = trajectory_from_wire(trajectory_to_wire(trajectory))
    assert [block.selection for block in returned.blocks] == [(), None]


def test_logprobs_are_rounded_to_32_bits_and_ids_are_not() -> None:
    trajectory = Trajectory("q", TokenRecord([7], [True], [-0.1], [3], [3]))
    returned = trajectory_from_wire(trajectory_to_wire(trajectory))
    assert returned.tokens.ids == [7]
    assert returned.tokens.logprobs == [float(np.float32(-0.1))]


def test_token_arrays_of_different_lengths_are_refused() -> None:
    message = trajectory_pb2.Trajectory(tokens=trajectory_pb2.TokenRecord(ids=[1, 2], mask=[True]))
    with pytest.raises(ValueError, match="differ in length"):
        trajectory_from_wire(message)


@given(
    st.builds(
        Provenance,
        generator_model=texts,
        searcher_model=texts,
        searcher_version=texts,
        index_generations=st.lists(texts, max_size=3).map(tuple),
        mode=texts,
        top_k=st.integers(0, 100),
        template_hash=texts,
        max_context_tokens=st.integers(0, 1 << 30),
        max_answer_tokens=st.integers(0, 1 << 30),
        temperature=st.floats(0, 2),
    )
)
@settings(deadline=None)
def test_provenance_survives_the_wire(provenance: Provenance) -> None:
    data = provenance_to_wire(provenance).SerializeToString()
    assert provenance_from_wire(provenance_pb2.Provenance.FromString(data)) == provenance
