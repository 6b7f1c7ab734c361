"""The documents that s3 reads back from a trajectory. Expected values come from running s3's own function."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols.s3_legacy_context import assemble_documents, assemble_from_text
from searchrl.agent.protocols.s3_protocol import S3Protocol
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock
from tests.fakes.in_memory_searcher import results_of


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
def test_the_documents_of_a_trajectory(trajectory: str, expected: str) -> None:
    assert " ".join(document.title for document in assemble_documents(trajectory)) == expected


def test_two_documents_with_the_same_text_count_once() -> None:
    text = '<information>Doc 1(Title: "A") same\nDoc 2(Title: "B") same</information>'
    assert [document.title for document in assemble_documents(text)] == ["A"]


def test_a_parenthesis_ends_the_title() -> None:
    (document,) = assemble_documents('<information>Doc 1(Title: "Mercury (planet)") hot</information>')
    assert (document.title, document.text) == ("Mercury (planet", '") hot')


def test_a_document_header_inside_a_text_cuts_it() -> None:
    text = '<information>Doc 1(Title: "A") before Doc 3 (Title: x) after</information>'
    first, second = assemble_documents(text)
    assert first.text == "before"
    assert (second.title, second.text) == ("x", "after")


def test_a_block_that_lost_its_closing_tag_merges_with_the_next_and_the_first_selection_takes_both() -> None:
    cut = A.replace("</information>", "")
    merged = cut + select("[1, 2]") + SEARCH + B + select("[3]") + FINISH
    assert [document.title for document in assemble_documents(merged)] == ["a1", "a2", "b1", "b2"]


def test_headers_may_be_spaced_and_spelt_freely() -> None:
    text = "<information>DOC2 ( title : Bare ) one\ndoc 4(Title:Other)two</information>"
    assert [(document.number, document.title, document.text) for document in assemble_documents(text)] == [
        (2, "Bare", "one"),
        (4, "Other", "two"),
    ]


def test_a_header_whose_title_cannot_be_read_is_no_document_but_ends_the_one_before() -> None:
    text = '<information>Doc 1(Title: "A") one\nDoc 2(Title: "") lost</information>'
    assert [(document.title, document.text) for document in assemble_documents(text)] == [("A", "one")]


def passages_and_block(count: int, prefix: str) -> InformationBlock:
    found = (Passage(f"id-{prefix}{n}", f"{prefix}{n}", f"text of {prefix}{n}") for n in range(1, count + 1))
    return InformationBlock("q", tuple(results_of(*found)))


def test_documents_keep_the_ids_of_the_passages_they_were_rendered_from() -> None:
    protocol = S3Protocol(f"{block('example')}<question>{{question}}</question>{{documents}}", "legacy")
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


def test_a_document_that_was_cut_keeps_its_id_and_text_of_nobody_gets_an_id_of_its_own() -> None:
    transcript = ["<question>q", "", '<information>Doc 1(Title: "a1") text o\nDoc 2(Title: "z") new</information>']
    first, second = assemble_from_text(transcript, [passages_and_block(2, "a")])
    assert (first.id, first.text) == ("id-a1", "text o")
    assert second.id == "unknown-2"


def test_titles_with_parentheses_keep_their_ids_too() -> None:
    protocol = S3Protocol("<question>{question}</question>{documents}", "legacy")
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
    titles_and_texts = [(document.title, document.text) for document in assemble_documents(text)]
    assert len(titles_and_texts) == len(set(titles_and_texts))
