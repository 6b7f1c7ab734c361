"""The Search-R1 protocol in its strict and its legacy mode."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols.base import Action, Answer, Invalid, Search, SearchProtocol
from searchrl.agent.protocols.search_r1 import SearchR1Protocol
from searchrl.agent.protocols.search_r1_legacy import SearchR1LegacyProtocol
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock
from tests.fakes.in_memory_searcher import results_of

STRICT = SearchR1Protocol()
LEGACY = SearchR1LegacyProtocol()


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think>a</think><search> who? </search>", Search(("who?",))),
        ("<think>a</think><answer> Rome </answer>", Answer("Rome")),
        ("<search>a</search><answer>b</answer>", Search(("a",))),
        ("<answer>b</answer><search>a</search>", Answer("b")),
        ("<answer></answer>", Answer("")),
    ],
)
@pytest.mark.parametrize("protocol", [STRICT, LEGACY], ids=["strict", "legacy"])
def test_the_first_action_counts(protocol: SearchProtocol, text: str, action: Action) -> None:
    assert protocol.parse_turn(text, None).action == action


def test_legacy_cuts_after_the_first_search_even_if_an_answer_came_before_it() -> None:
    assert LEGACY.parse_turn("<answer>open <search>q</search></answer>", None).action == Search(("q",))


def test_legacy_answers_an_invalid_turn_with_search_r1s_message_byte_for_byte() -> None:
    action = LEGACY.parse_turn("dunno", None).action
    assert isinstance(action, Invalid)
    assert action.feedback == (
        "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
        "If I want to give the final answer, I should put the answer between <answer> and </answer>. "
        "Let me try again.\n"
    )


def test_strict_never_acts_on_a_thought() -> None:
    for opening, closing in (("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷")):
        text = f"{opening}I could <search>this{closing}<search>that</search>"
        assert STRICT.parse_turn(text, None).action == Search(("that",))
    text = "<think>I could <search>this</think><search>that</search>"
    assert STRICT.parse_turn(text, None).action == Search(("that",))
    assert isinstance(STRICT.parse_turn("<think><answer>x</answer>", None).action, Invalid)


def test_an_empty_search_is_invalid_and_answered() -> None:
    for protocol in (STRICT, LEGACY):
        action = protocol.parse_turn("<think>a</think><search> </search>", None).action
        assert isinstance(action, Invalid) and action.feedback


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("<think>a</think>\n<search>q</search>\n", True),
        ("a</think><answer>x</answer>", True),
        ("<search>q</search>", True),
        ("<think>a</think> so: <search>q</search>", False),
        ("<search>q</search> trailing text", True),
        ("<answer>x</answer><search>q</search>", True),
        ("<search><answer>q</search>", False),
        ("<search>" + "q" * 1001 + "</search>", False),
        ("nothing", False),
    ],
)
def test_a_well_formed_turn_is_an_optional_thought_and_one_action(text: str, well_formed: bool) -> None:
    assert STRICT.parse_turn(text, None).well_formed == well_formed


def test_documents_are_everything_retrieved_once_in_order() -> None:
    passages = [Passage(f"p{number}", f"T{number}", "x") for number in range(3)]
    blocks = [
        InformationBlock("a", tuple(results_of(passages[1], passages[0]))),
        InformationBlock("b", tuple(results_of(passages[0], passages[2]))),
    ]
    assert [passage.id for passage in STRICT.assemble_documents(blocks, [])] == ["p1", "p0", "p2"]


def test_documents_are_written_as_search_r1_writes_them() -> None:
    results = results_of(Passage("1", "T1", "text one"), Passage("2", "T2", "two"))
    text = 'Doc 1(Title: "T1") text one\nDoc 2(Title: "T2") two'
    assert LEGACY.render_results([results]) == f"\n\n<information>{text}</information>\n\n"
    assert STRICT.render_results([results]) == f"\n\n<information>{text}\n</information>\n\n"


def test_the_default_prompt_names_every_tag_and_holds_no_complete_answer() -> None:
    prompt = STRICT.render_prompt("who?", ())
    for tag in ("<think>", "<search>", "<information>", "<answer>"):
        assert tag in prompt
    assert prompt.rstrip().endswith("Question: who?")


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["<search>", "</search>", "<answer>", "</answer>", "<think>", "</think>"])).map("".join)
)
def test_no_text_breaks_the_parser(text: str) -> None:
    for protocol in (STRICT, LEGACY):
        protocol.parse_turn(text, None)
