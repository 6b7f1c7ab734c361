"""The small world's reader: it answers only what its passages state, and judges by the span rule."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.small_world.names import NAME_PARTS
from searchrl.small_world.reader import (
    UNKNOWN,
    answer_chat,
    answer_from_context,
    answer_from_passages,
    parse_fact,
    parse_passages,
    parse_question,
)
from searchrl.small_world.relations import FILLERS, OPENINGS, RELATION_BY_NAME, RELATIONS
from searchrl.small_world.world import Fact

FALCON = "Amber Falcon was directed by Clara Whitfield."
CLARA = "Clara Whitfield is a native of Lakewood Bay."
QUESTION = "What is the birthplace of the director of Amber Falcon?"


def names(kind: str) -> st.SearchStrategy[str]:
    first, second = NAME_PARTS[kind]
    return st.builds("{} {}".format, st.sampled_from(first), st.sampled_from(second))


@st.composite
def question_chains(draw: st.DrawFn) -> tuple[str, str, tuple[str, ...]]:
    """A question's text with the subject and relations it was made of."""
    relations = draw(st.lists(st.sampled_from(RELATIONS), min_size=1, max_size=4))
    subject = draw(names(relations[0].subject))
    phrase = subject
    for relation in relations:
        phrase = f"the {draw(st.sampled_from(relation.nouns))} of {phrase}"
    return f"{draw(st.sampled_from(OPENINGS))} {phrase}?", subject, tuple(relation.name for relation in relations)


@given(question_chains())
def test_a_question_is_parsed_into_the_chain_it_was_built_from(chain: tuple[str, str, tuple[str, ...]]) -> None:
    text, subject, relations = chain
    parsed = parse_question(text)
    assert parsed is not None
    assert (parsed.subject, parsed.relations) == (subject, relations)


@pytest.mark.parametrize(
    ("relation", "sentence"), [(relation, text) for relation in RELATIONS for text in relation.sentences]
)
@given(data=st.data())
def test_every_sentence_states_exactly_its_fact(relation, sentence: str, data: st.DataObject) -> None:
    subject, object_ = data.draw(names(relation.subject)), data.draw(names(relation.object))
    assert parse_fact(sentence.format(s=subject, o=object_)) == Fact(subject, relation.name, object_)


@pytest.mark.parametrize("filler", FILLERS)
def test_fillers_state_nothing(filler: str) -> None:
    assert parse_fact(filler.format(s="Amber Falcon")) is None


def test_no_noun_means_two_relations() -> None:
    nouns = [noun for relation in RELATIONS for noun in relation.nouns]
    assert len(nouns) == len(set(nouns))


@pytest.mark.parametrize(
    "text", ["", "Who wrote Hamlet?", "What is the color of Amber Falcon?", "What is the director?"]
)
def test_other_questions_are_not_understood_and_get_unknown(text: str) -> None:
    assert parse_question(text) is None
    assert answer_from_passages(text, [FALCON]) == UNKNOWN


@pytest.mark.parametrize("order", list(itertools.permutations([FALCON, CLARA])))
def test_a_chain_is_followed_whatever_the_order_of_the_passages(order: tuple[str, ...]) -> None:
    assert answer_from_passages(QUESTION, order) == "Lakewood Bay"


@pytest.mark.parametrize("passages", [[], [FALCON], [CLARA]])
def test_a_chain_with_a_missing_fact_is_unknown(passages: list[str]) -> None:
    assert answer_from_passages(QUESTION, passages) == UNKNOWN


def test_only_the_first_five_passages_are_read() -> None:
    filler = "Amber Falcon is often mentioned in the press."
    assert answer_from_passages(QUESTION, [filler] * 3 + [FALCON, CLARA]) == "Lakewood Bay"
    assert answer_from_passages(QUESTION, [filler] * 4 + [FALCON, CLARA]) == UNKNOWN


def test_facts_about_others_and_the_reverse_of_a_fact_are_not_used() -> None:
    assert (
        answer_from_passages("What is the spouse of Clara Whitfield?", ["Hugo Novak wed Clara Whitfield."]) == UNKNOWN
    )
    assert (
        answer_from_passages(
            "What is the director of Amber Falcon?", ["Golden Falcon was directed by Clara Whitfield."]
        )
        == UNKNOWN
    )


@given(question_chains(), st.lists(st.text(alphabet=st.characters(categories=("L", "Z", "P"))), max_size=4))
def test_text_without_statements_never_gives_an_answer(
    chain: tuple[str, str, tuple[str, ...]], passages: list[str]
) -> None:
    assert answer_from_passages(chain[0], passages) == UNKNOWN


def render(passages: list[str]) -> str:
    return "".join(f'Doc {number} (Title: "T")\n{text}\n\n' for number, text in enumerate(passages, 1))


def test_rendered_passages_are_read_back_in_order() -> None:
    assert parse_passages(render([FALCON, CLARA])) == [FALCON, CLARA]


def test_text_around_the_rendered_passages_is_not_part_of_them() -> None:
    context = f"Use these: {render([FALCON, CLARA])}Answer briefly."
    assert parse_passages(context) == [FALCON, CLARA]
    assert answer_from_context(QUESTION, context) == "Lakewood Bay"


def test_a_chat_with_documents_in_the_system_message_is_answered() -> None:
    messages = [{"role": "system", "content": render([CLARA, FALCON])}, {"role": "user", "content": QUESTION}]
    assert answer_chat(messages) == "Lakewood Bay"


def test_a_chat_with_everything_in_one_message_is_answered() -> None:
    content = f"{render([CLARA, FALCON])}Question:\n{QUESTION}\n"
    assert answer_chat([{"role": "user", "content": content}]) == "Lakewood Bay"


def test_a_chat_without_documents_is_unknown() -> None:
    assert answer_chat([{"role": "user", "content": QUESTION}]) == UNKNOWN
    assert answer_chat([]) == UNKNOWN


@pytest.mark.parametrize(
    ("response", "verdict"), [("It is lakewood bay.", "yes"), ("Lakewood Bayside", "no"), ("unknown", "no"), ("", "no")]
)
def test_a_judge_prompt_is_answered_by_the_span_rule(response: str, verdict: str) -> None:
    content = (
        f"Question: {QUESTION}\n\nGolden answers:\n- Lakewood Bay\n- The Bay\n\nResponse: {response}\n\n"
        "Is the response right?"
    )
    messages = [{"role": "system", "content": "Decide."}, {"role": "user", "content": content}]
    assert answer_chat(messages) == verdict


def test_the_reader_follows_relations_it_knows_by_name() -> None:
    assert {relation.name for relation in RELATIONS} == set(RELATION_BY_NAME)
