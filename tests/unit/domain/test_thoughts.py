"""Thoughts of reasoning models never survive in a reply, however they are opened and closed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.domain.thoughts import strip_thoughts

words = st.text(st.characters(codec="utf-8", exclude_characters="<>[]◁▷"), max_size=30)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Rome", "Rome"),
        ("<think>Paris or London?</think>\n\nRome", "Rome"),
        ("Paris or London?\n</think>\n\nRome", "Rome"),
        ("<think>Paris or", ""),
        ("Rome <think>or Paris", "Rome"),
        ("Rome<think>sure?</think>", "Rome"),
        ("<think>a<think>b</think>c</think>Rome", "Rome"),
        ("<think>a<think>b</think>Rome", "Rome"),
        ("I may write <think>x</think> here.</think>Rome", "Rome"),
        ("<think>a</think>Ro<think>b</think>me", "Rome"),
        ("<think></think>", ""),
        ("</think>", ""),
        ("<Think >a</THINK>Rome", "Rome"),
        ("<thinking>Paris</thinking>Rome", "Rome"),
        ("<reasoning>Paris</reasoning>Rome", "Rome"),
        ("<seed:think>Paris</seed:think>Rome", "Rome"),
        ("[THINK]Paris[/THINK]Rome", "Rome"),
        ("◁think▷Paris◁/think▷Rome", "Rome"),
        ("<scratchpad>Paris</scratchpad>Rome", "Rome"),
        ("<|thinking|>Paris<|/thinking|>Rome", "Rome"),
        ("<|START_THINKING|>Paris<|END_THINKING|><|START_RESPONSE|>Rome<|END_RESPONSE|>", "Rome"),
        ("<|begin_of_thought|>Paris<|end_of_thought|>\n<|begin_of_solution|>\nRome<|end_of_solution|>", "Rome"),
        ("<|channel|>analysis<|message|>Paris<|end|><|start|>assistant<|channel|>final<|message|>Rome", "Rome"),
        ("<|channel|>analysis<|message|>Paris<|end|><|start|>assistant<|channel|>commentary to=x<|message|>Oslo", ""),
        ("Paris<|end|><|start|>assistant<|channel|>final <|message|>Rome<|return|>", "Rome"),
        ("<|channel|>final<|message|>Rome<|end|>", "Rome"),
        ("analysisParis or London?assistantfinalRome", "Rome"),
        ("<|channel>thought\nParis<channel|>Rome", "Rome"),
        ("It is on <|channel|> 4, the final.", "It is on <|channel|> 4, the final."),
        ("[think] of 3 < 4 and the thinker", "[think] of 3 < 4 and the thinker"),
    ],
)
def test_only_text_outside_thoughts_is_left(text: str, answer: str) -> None:
    assert strip_thoughts(text) == answer


@settings(deadline=None)
@given(words, words, words)
def test_an_answer_is_the_same_with_any_thought_before_it(thought: str, inner: str, answer: str) -> None:
    for opening in ("<think>", "", "[THINK]"):
        closing = "[/THINK]" if opening == "[THINK]" else "</think>"
        assert strip_thoughts(f"{opening}{thought}{closing}{answer}") == answer.strip()
    assert strip_thoughts(f"<think>{thought}<think>{inner}</think></think>{answer}") == answer.strip()
    assert strip_thoughts(f"{answer}<think>{thought}") == answer.strip()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "<thi", "nk>"]), max_size=12).map("".join))
def test_no_tag_survives_and_stripping_again_changes_nothing(text: str) -> None:
    stripped = strip_thoughts(text)
    assert "think>" not in stripped
    assert strip_thoughts(stripped) == stripped
