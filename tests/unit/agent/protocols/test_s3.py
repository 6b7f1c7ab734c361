"""The s3 protocol in strict mode: well-formed turns, queries, selections, documents and the prompt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols.base import Finish, Invalid, Search
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.types import Limits
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock
from tests.fakes.in_memory_searcher import results_of

BLOCK = InformationBlock("q", tuple(results_of(*(Passage(f"p{n}", f"T{n}", f"text {n}") for n in range(1, 6)))))
ASK = '<search_complete>False</search_complete><query>{"query": "x"}</query>'
DONE = "<search_complete>True</search_complete>"
SELECT = "<important_info>[1, 2]</important_info>"
PROTOCOL = S3Protocol()


@pytest.mark.parametrize(
    "text",
    [
        SELECT + ASK,
        f"<think>1 < 2, so {DONE[:4]}</think>{SELECT}{ASK}",
        f"template opened this thought</think>\n{SELECT}\n{DONE}\n",
        f" \n{SELECT}\n\n {ASK} ",
        "<important_info>[]</important_info>" + DONE,
        "<important_info> [ 3 ] </important_info><search_complete> false </search_complete>"
        '<query> { "query" : "x" } </query>',
        SELECT + ASK.replace('{"query": "x"}', '{ " query " : " x " }'),
        f"{SELECT}{ASK}{DONE}",
    ],
)
def test_turns_that_keep_every_rule_are_well_formed(text: str) -> None:
    assert PROTOCOL.parse_turn(text, BLOCK).well_formed


@pytest.mark.parametrize(
    "text",
    [
        ASK,
        DONE,
        SELECT,
        SELECT + "<search_complete>False</search_complete>",
        SELECT + '<query>{"query": "x"}</query>',
        SELECT + DONE + '<query>{"query": "x"}</query>',
        SELECT + DONE + " anything else",
        "first " + SELECT + DONE,
        ASK.replace("<query>", SELECT + "<query>"),
        SELECT + SELECT + DONE,
        SELECT + "<search_complete>maybe</search_complete>",
        SELECT + "<search_complete>yes</search_complete>",
        SELECT + ASK.replace('{"query": "x"}', "x"),
        SELECT + ASK.replace('{"query": "x"}', '{"query": ["x"]}'),
        SELECT + ASK.replace('{"query": "x"}', '{"query": "x", "why": "y"}'),
        SELECT + ASK.replace('{"query": "x"}', '{"query": "\\ud800"}'),
        SELECT + ASK.replace('"x"', '"' + "x" * 1001 + '"'),
        "<important_info>1, 2</important_info>" + DONE,
        "<important_info>[1 2]</important_info>" + DONE,
        "<important_info>[1,]</important_info>" + DONE,
        "<important_info>[0]</important_info>" + DONE,
        "<important_info>[6]</important_info>" + DONE,
        "<important_info>[1, 1]</important_info>" + DONE,
        "<important_info>[1, 2, 3, 4]</important_info>" + DONE,
        "<important_info>[" + "9" * 5000 + "]</important_info>" + DONE,
        SELECT + "<think>late</think>" + DONE,
        "<think>never closed" + SELECT + DONE,
        "",
    ],
)
def test_turns_that_break_a_rule_are_not_well_formed(text: str) -> None:
    assert not PROTOCOL.parse_turn(text, BLOCK).well_formed


def test_the_first_turn_may_omit_the_selection_where_nothing_was_shown() -> None:
    assert PROTOCOL.parse_turn(ASK, None).well_formed
    assert PROTOCOL.parse_turn("<important_info>[]</important_info>" + ASK, None).well_formed
    assert not PROTOCOL.parse_turn(SELECT + ASK, None).well_formed


def test_finishing_wins_over_a_query() -> None:
    parsed = PROTOCOL.parse_turn(SELECT + DONE + '<query>{"query": "x"}</query>', BLOCK)
    assert parsed.action == Finish()
    assert parsed.selection == (1, 2)


@pytest.mark.parametrize("word", ["true", "True", "yes", "1", "Y", " TRUE "])
def test_every_true_word_ends_the_search(word: str) -> None:
    assert PROTOCOL.parse_turn(f"<search_complete>{word}</search_complete>", BLOCK).action == Finish()


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ('{"query": "x y"}', "x y"),
        ('{"query": ["a", "b"]}', "a"),
        ("plain words", "plain words"),
        ('{"query": "unfinished', '{"query": "unfinished'),
        ('{"query": "\\ud800x"}', "?x"),
        ("[" * 100_000, "[" * 1000),
    ],
)
def test_a_query_that_is_not_the_json_object_is_searched_as_well_as_can_be(content: str, query: str) -> None:
    action = PROTOCOL.parse_turn(ASK.replace('{"query": "x"}', content), BLOCK).action
    assert action == Search((query,))


@pytest.mark.parametrize(
    "text", ["", "hello", "<query></query>", "<query>  </query>", '<query>{"query": "x"}', DONE[:-3]]
)
def test_a_turn_without_query_or_end_is_invalid_and_ends_the_rollout(text: str) -> None:
    action = PROTOCOL.parse_turn(text, BLOCK).action
    assert isinstance(action, Invalid) and action.feedback is None


def test_thoughts_are_never_read() -> None:
    parsed = PROTOCOL.parse_turn(f"<think>{DONE}<important_info>[5]</important_info></think>{SELECT}{ASK}", BLOCK)
    assert parsed.action == Search(("x",))
    assert parsed.selection == (1, 2)


def test_the_selection_keeps_its_order_and_drops_what_does_not_count() -> None:
    parsed = PROTOCOL.parse_turn("<important_info>[4, 9, 2, 4, 0, 5, 1]</important_info>" + DONE, BLOCK)
    assert parsed.selection == (4, 2, 5)


def test_the_number_of_selected_documents_is_a_setting() -> None:
    text = "<important_info>[1, 2, 3, 4]</important_info>" + DONE
    parsed = S3Protocol(limits=Limits(max_selected=4)).parse_turn(text, BLOCK)
    assert parsed.selection == (1, 2, 3, 4) and parsed.well_formed


def selected(*positions: int, block: InformationBlock = BLOCK) -> InformationBlock:
    return InformationBlock(block.query, block.results, positions)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([], ""),
        ([BLOCK], "p1 p2 p3 p4 p5"),
        ([selected(3, 1)], "p3 p1"),
        ([selected()], ""),
        ([selected(2), BLOCK], "p2"),
        ([selected(2), selected(5, 2)], "p2 p5"),
        ([selected(), selected(4)], "p4"),
    ],
)
def test_documents_are_those_selected_or_all_if_nothing_ever_was(blocks: list[InformationBlock], expected: str) -> None:
    assert " ".join(passage.id for passage in PROTOCOL.assemble_documents(blocks, [])) == expected


def test_unclaimed_blocks_in_the_fallback_are_deduplicated_by_id() -> None:
    twin = Passage("p1", "other title", "other text")
    again = InformationBlock("q", tuple(results_of(twin, Passage("p6", "T6", "text 1"))))
    passages = PROTOCOL.assemble_documents([BLOCK, again], [])
    assert [passage.id for passage in passages] == ["p1", "p2", "p3", "p4", "p5", "p6"]
    assert passages[0].text == "text 1"


def test_the_information_block_of_a_prompt_and_of_an_observation() -> None:
    block = '<information>Doc 1(Title: "T1") text 1\nDoc 2(Title: "T2") text 2\n</information>'
    protocol = S3Protocol("Find .<question>{question}</question>{documents}")
    assert protocol.render_prompt("who?", BLOCK.results[:2]) == f"Find .<question>who?</question>{block}"
    assert protocol.render_results([BLOCK.results[:2]]) == f"\n\n{block}\n\n"


def test_the_default_prompt_says_everything_a_searcher_must_know() -> None:
    prompt = S3Protocol(limits=Limits(max_selected=4)).render_prompt("who {documents}?", BLOCK.results)
    assert "at most 4" in prompt
    assert "who {documents}?" in prompt
    assert '{"query": "' in prompt
    for tag in ("<think>", "<important_info>", "<search_complete>True</search_complete>", "<query>", "<information>"):
        assert tag in prompt
    assert prompt.rstrip().endswith("</information>")


def test_the_examples_in_the_default_prompt_are_well_formed_turns() -> None:
    lines = S3Protocol().render_prompt("q", ()).splitlines()
    examples = [line for line in lines if line.startswith("<important_info>")]
    assert len(examples) == 3
    assert all(PROTOCOL.parse_turn(example, BLOCK).well_formed for example in examples)


tags = st.sampled_from(
    ["<think>", "</think>", "<query>", "</query>", "<important_info>", "</important_info>", "<search_complete>",
     "</search_complete>", "True", "False", '{"query": "', '"}', "[", "]", "1", ",", " ", "\x00", "\ud800"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(tags | st.text(max_size=5), max_size=40).map("".join), st.booleans())
def test_no_text_breaks_the_parser_and_selections_are_always_valid(text: str, has_block: bool) -> None:
    parsed = PROTOCOL.parse_turn(text, BLOCK if has_block else None)
    assert all(1 <= position <= 5 for position in parsed.selection or ())
    assert len(parsed.selection or ()) <= 3
    if isinstance(parsed.action, Search):
        (query,) = parsed.action.queries
        assert query.strip() and len(query) <= 1000
        query.encode("utf-8")


@pytest.mark.parametrize(
    "text", ["<think>" * 20_000, "<query>" * 20_000, " " * 200_000, "</think>" * 20_000, SELECT * 5_000]
)
def test_huge_repetitive_outputs_are_read_in_linear_time(text: str) -> None:
    PROTOCOL.parse_turn(text, BLOCK)
