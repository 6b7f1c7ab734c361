"""The published behavior of s3's turns and documents. Expected values come from running s3's own functions."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols.base import Finish, Invalid, Search
from searchrl.agent.protocols.s3_legacy import S3LegacyProtocol, assemble_from_text
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock
from tests.fakes.in_memory_searcher import results_of

PROTOCOL = S3LegacyProtocol()


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


def test_a_list_of_objects_is_searched_verbatim_where_s3_would_fail_the_entire_batch() -> None:
    assert PROTOCOL.parse_turn('<query>{"query": [{"a":1}]}</query>', None).action == Search(('{"query": [{"a":1}]}',))


@pytest.mark.parametrize("word", ["true", "TRUE", "yes", "1", "y", " True\n"])
def test_a_true_search_complete_wins_over_a_query(word: str) -> None:
    text = f'<search_complete>{word}</search_complete><query>{{"query": "x"}}</query>'
    assert PROTOCOL.parse_turn(text, None).action == Finish()


@pytest.mark.parametrize("word", ["false", "no", "0", "", "true.", "truely"])  # codespell:ignore
def test_any_other_word_continues_the_search(word: str) -> None:
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
    prompt = S3LegacyProtocol("<question>\n{question}\n</question>\n{documents}").render_prompt("who?", results)
    assert prompt == (
        '<question>\nwho?\n</question>\n<information>\nDoc 1 (Title: "T1") text one\nDoc 2 (Title: "T2") text\ntwo\n'
        "</information>"
    )
    assert PROTOCOL.render_results([results]) == (
        '\n\n<information>Doc 1(Title: "T1") text one\nDoc 2(Title: "T2") text\ntwo</information>\n\n'
    )


def test_a_ready_made_prompt_passes_through_unchanged() -> None:
    prompt = 'Any {braces} and {documents} stay. <question>\nwho?\n</question>\n<information>\nDoc 1 (Title: "T") x\n'
    assert S3LegacyProtocol("{question}").render_prompt(prompt, ()) == prompt


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["<query>", "</query>", '{"query":', "[", "<important_info>", "9"])).map("".join)
)
def test_no_text_breaks_the_parser(text: str) -> None:
    PROTOCOL.parse_turn(text, None)


def documents(names: Sequence[str]) -> str:
    return "\n".join(f'Doc {number}(Title: "{name}") text of {name}' for number, name in enumerate(names, start=1))


def block(*names: str) -> str:
    return f"\n\n<information>{documents(names)}</information>\n\n"


def select(content: str) -> str:
    return f"<important_info>{content}</important_info>"


INITIAL = block("i1", "i2", "i3")
A = block(*(f"a{number}" for number in range(1, 9)))
B = block(*(f"b{number}" for number in range(1, 9)))
SEARCH = '<query>{"query": "x"}</query>'
FINISH = "<search_complete>True</search_complete>"


@pytest.mark.parametrize(
    ("trajectory", "expected"),
    [
        (
            INITIAL + SEARCH + A + select("[2,5,9,1]") + SEARCH + B + FINISH,
            "a1 a2 a5 i1 i2 i3 b1 b2 b3 b4 b5 b6 b7 b8",
        ),
        (INITIAL + select("[]") + FINISH, ""),
        (A + select("[1]") + select("[2]") + select("[3]") + FINISH, "a1"),
        (INITIAL + select("Doc1, doc2, DOC3") + FINISH, "i1 i2 i3"),
        (INITIAL + select("4,5,6") + FINISH, ""),
        (INITIAL + select("[3, 1]") + SEARCH + A + select("[8, 7]") + FINISH, "i1 i3 a7 a8"),
        (block(*"abcdefghij") + select("[9, 10, 2]") + FINISH, "b"),
        (select("[1]") + INITIAL + FINISH, "i1 i2 i3"),
        (INITIAL + SEARCH + INITIAL + FINISH, "i1 i2 i3"),
        ("", ""),
        ("no documents at all", ""),
    ],
    ids=[
        "selected, then unclaimed blocks in full",
        "an empty selection drops its block",
        "only the first of three selections counts",
        "numbers are found in any wording",
        "numbers beyond the documents select nothing",
        "document order, not selection order",
        "numbers above eight are unknown",
        "a selection before every block is ignored",
        "the same text twice counts once",
        "nothing",
        "nothing to read",
    ],
)
def test_legacy_documents_are_parsed_from_the_text(trajectory: str, expected: str) -> None:
    assert " ".join(document.title for document in assemble_from_text(trajectory)) == expected


def test_two_documents_with_the_same_text_count_once() -> None:
    text = '<information>Doc 1(Title: "A") same\nDoc 2(Title: "B") same</information>'
    assert [document.title for document in assemble_from_text(text)] == ["A"]


def test_a_parenthesis_ends_the_title() -> None:
    (document,) = assemble_from_text('<information>Doc 1(Title: "Mercury (planet)") hot</information>')
    assert (document.title, document.text) == ("Mercury (planet", '") hot')


def test_a_document_header_inside_a_text_cuts_it() -> None:
    text = '<information>Doc 1(Title: "A") before Doc 3 (Title: x) after</information>'
    first, second = assemble_from_text(text)
    assert first.text == "before"
    assert (second.title, second.text) == ("x", "after")


def test_a_block_that_lost_its_closing_tag_merges_with_the_next_and_the_first_selection_takes_both() -> None:
    cut = A.replace("</information>", "")
    merged = cut + select("[1, 2]") + SEARCH + B + select("[3]") + FINISH
    assert [document.title for document in assemble_from_text(merged)] == ["a1", "a2", "b1", "b2"]


def test_headers_may_be_spaced_and_spelled_freely() -> None:
    text = "<information>DOC2 ( title : Bare ) one\ndoc 4(Title:Other)two</information>"
    assert [(document.number, document.title, document.text) for document in assemble_from_text(text)] == [
        (2, "Bare", "one"),
        (4, "Other", "two"),
    ]


def test_a_header_whose_title_cannot_be_read_is_not_a_document_but_ends_the_one_before() -> None:
    text = '<information>Doc 1(Title: "A") one\nDoc 2(Title: "") lost</information>'
    assert [(document.title, document.text) for document in assemble_from_text(text)] == [("A", "one")]


def passages_and_block(count: int, prefix: str) -> InformationBlock:
    found = (Passage(f"id-{prefix}{n}", f"{prefix}{n}", f"text of {prefix}{n}") for n in range(1, count + 1))
    return InformationBlock("q", tuple(results_of(*found)))


def test_documents_keep_the_ids_of_the_passages_they_were_rendered_from() -> None:
    protocol = S3LegacyProtocol(f"{block('example')}<question>{{question}}</question>{{documents}}")
    initial, found = passages_and_block(3, "i"), passages_and_block(8, "a")
    transcript = [
        protocol.render_prompt("who?", initial.results),
        SEARCH + block("invented"),
        protocol.render_results([found.results]),
        select("[2]") + FINISH,
    ]
    passages = protocol.assemble_documents([initial, found], transcript)
    assert [passage.id for passage in passages] == ["id-a2", "id-i1", "id-i2", "id-i3"]
    assert passages[0].text == "text of a2"


def test_a_cut_document_keeps_its_id_and_an_unknown_text_gets_an_id_of_its_own() -> None:
    transcript = ["<question>q", "", '<information>Doc 1(Title: "a1") text o\nDoc 2(Title: "z") new</information>']
    first, second = S3LegacyProtocol().assemble_documents([passages_and_block(2, "a")], transcript)
    assert (first.id, first.text) == ("id-a1", "text o")
    assert second.id == "unknown-2"


def test_titles_with_parentheses_keep_their_ids_too() -> None:
    protocol = S3LegacyProtocol("<question>{question}</question>{documents}")
    mercury = InformationBlock("q", tuple(results_of(Passage("m", "Mercury (planet)", "hot"))))
    (passage,) = protocol.assemble_documents([mercury], [protocol.render_prompt("q", mercury.results)])
    assert (passage.id, passage.title, passage.text) == ("m", "Mercury (planet", '") hot')


PIECES = [
    "<information>",
    "</information>",
    select("[1]"),
    "<important_info>",
    "Doc 1(Title: ",
    '"',
    ")",
    "Doc ",
    "9" * 30,
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map("".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    titles_and_texts = [(document.title, document.text) for document in assemble_from_text(text)]
    assert len(titles_and_texts) == len(set(titles_and_texts))
