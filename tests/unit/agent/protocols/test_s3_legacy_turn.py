"""The published behavior of s3's turns. Expected values come from running s3's own functions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocol import Finish, Invalid, Search
from searchrl.agent.protocols.s3_protocol import S3Protocol
from searchrl.domain.passage import Passage
from tests.fakes.in_memory_searcher import results_of

PROTOCOL = S3Protocol(mode="legacy")


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ('{"query": "abc"}', "abc"),
        ('{"query": ["a","b"]}', "a"),
        ('{"query": []}', '{"query": []}'),
        ('{"query": 5}', '{"query": 5}'),
        ('{"q":"x"}', '{"q":"x"}'),
        ("[]", "[]"),
        ('"abc query"', '"abc query"'),
        ("not json", "not json"),
        ("null", "null"),
        ('["query"]', '["query"]'),
    ],
)
def test_the_query_sent_for_each_content_of_the_tag(content: str, query: str) -> None:
    assert PROTOCOL.parse_turn(f"<query>{content}</query>", None).action == Search((query,))


def test_a_list_of_objects_is_searched_verbatim_where_s3_would_fail_the_whole_batch() -> None:
    assert PROTOCOL.parse_turn('<query>{"query": [{"a":1}]}</query>', None).action == Search(('{"query": [{"a":1}]}',))


@pytest.mark.parametrize("word", ["true", "TRUE", "yes", "1", "y", " True\n"])
def test_a_true_search_complete_wins_over_a_query(word: str) -> None:
    text = f'<search_complete>{word}</search_complete><query>{{"query": "x"}}</query>'
    assert PROTOCOL.parse_turn(text, None).action == Finish()


@pytest.mark.parametrize("word", ["false", "no", "0", "", "true.", "truely"])  # codespell:ignore
def test_anything_else_is_not_complete(word: str) -> None:
    text = f'<search_complete>{word}</search_complete><query>{{"query": "x"}}</query>'
    assert PROTOCOL.parse_turn(text, None).action == Search(("x",))


def test_everything_after_the_first_closing_query_tag_is_cut() -> None:
    text = "<query>one</query><search_complete>True</search_complete><query>two</query>"
    assert PROTOCOL.parse_turn(text, None).action == Search(("one",))


def test_a_closing_tag_without_an_opening_one_gets_it_prepended() -> None:
    assert PROTOCOL.parse_turn('{"query": "abc"}\n</query>', None).action == Search(("abc",))


def test_an_invalid_turn_is_answered_with_s3s_message_byte_for_byte() -> None:
    action = PROTOCOL.parse_turn("no tags at all", None).action
    assert isinstance(action, Invalid)
    assert action.feedback == (
        "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new search "
        "query between <query> and </query> tags in JSON format:\n<query>\n"
    )


def test_an_empty_query_is_invalid_because_no_search_engine_takes_one() -> None:
    assert isinstance(PROTOCOL.parse_turn("<query> </query>", None).action, Invalid)


def test_thoughts_are_read_like_everything_else() -> None:
    assert PROTOCOL.parse_turn("<think><query>a</query></think>", None).action == Search(("a",))


def test_the_first_documents_and_later_ones_are_written_differently() -> None:
    results = results_of(Passage("1", "T1", "text one"), Passage("2", "T2", "text\ntwo"))
    prompt = S3Protocol("<question>\n{question}\n</question>\n{documents}", "legacy").render_prompt("who?", results)
    assert prompt == (
        '<question>\nwho?\n</question>\n<information>\nDoc 1 (Title: "T1") text one\nDoc 2 (Title: "T2") text\ntwo\n'
        "</information>"
    )
    assert PROTOCOL.render_results([results]) == (
        '\n\n<information>Doc 1(Title: "T1") text one\nDoc 2(Title: "T2") text\ntwo</information>\n\n'
    )


def test_a_ready_made_prompt_passes_through_unchanged() -> None:
    prompt = 'Any {braces} and {documents} stay. <question>\nwho?\n</question>\n<information>\nDoc 1 (Title: "T") x\n'
    assert S3Protocol("{question}", "legacy").render_prompt(prompt, ()) == prompt


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["<query>", "</query>", '{"query":', "[", "<important_info>", "9"])).map("".join)
)
def test_no_text_breaks_the_parser(text: str) -> None:
    PROTOCOL.parse_turn(text, None)
