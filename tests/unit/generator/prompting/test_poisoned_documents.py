"""Poisoned documents, questions and answers never change the structure of a prompt of generator or judge."""

import re
from collections.abc import Callable

import pytest

from searchrl.agent.untrusted_text import PROTOCOL_TAGS
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from services.generator.engines.base import ChatMessage
from services.generator.judging.judge import JudgeRequest, judge_messages
from services.generator.methods.base import AnsweringMethod
from services.generator.methods.direct import DirectMethod
from services.generator.methods.oracle import OracleMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.random_retriever import RandomRetrieverMethod
from services.generator.methods.title_heuristic import TitleHeuristicMethod
from services.generator.prompting.context_template import ContextTemplate, WordCounter
from tests.fakes.generator_parts import PassageStore, answerer_of
from tests.fakes.poisoned_documents import ATTACKS, CONTROL_TOKENS, poisoned
from tests.fakes.scripted_engine import ScriptedEngine

METHODS = [DirectMethod, RagMethod, TitleHeuristicMethod, RandomRetrieverMethod, OracleMethod]
LAYOUTS = {"ours": None, "s3": "Use these:\n{documents}End.", "user": "{documents}\n<question>{question}</question>"}
HARMLESS = Passage("ok", "Ystad", "Ystad is a town.")
_TAG = re.compile(rf"<\s*/?\s*({'|'.join(PROTOCOL_TAGS)})\s*>", re.IGNORECASE)
_HEADER = re.compile(r"Doc\s*\d+\s*\(\s*Title\s*:", re.IGNORECASE)


async def drop(_step: object) -> None:
    pass


attacks = pytest.mark.parametrize("attack", ATTACKS)


def structure(messages: tuple[ChatMessage, ...]) -> list[tuple[str, list[str], int]]:
    """Role, tags and number of document headers of every message."""
    return [(m.role, [tag[0] for tag in _TAG.finditer(m.content)], len(_HEADER.findall(m.content))) for m in messages]


def assert_no_control_token(messages: tuple[ChatMessage, ...]) -> None:
    for message in messages:
        assert not [token for token in CONTROL_TOKENS if token in message.content]


@attacks
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [120, 5000])
def test_the_context_has_the_structure_of_its_template(attack: str, layout: str, budget: int) -> None:
    template = ContextTemplate(WordCounter(1.0), budget, LAYOUTS[layout])
    expected = template.render("Who?", [Passage("p1", "T", "x"), HARMLESS])
    attacked = template.render(f"Who? {ATTACKS[attack]}", [poisoned(attack), HARMLESS])
    assert structure(attacked.messages) == structure(expected.messages)
    assert_no_control_token(attacked.messages)
    assert [passage.id for passage in attacked.documents] == ["p1", "ok"]


@attacks
def test_the_judge_reads_question_answer_and_golden_answers_as_quotations(attack: str) -> None:
    text = ATTACKS[attack]
    expected = judge_messages(JudgeRequest("q", "a", ("g", "h")))
    attacked = judge_messages(JudgeRequest(text, text, (text, "h")))
    assert structure(attacked) == structure(expected)
    assert_no_control_token(attacked)
    assert attacked[1].content.count("\n- ") == 2  # a golden answer cannot add another one


@attacks
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
async def test_what_a_method_sends_to_the_engine_has_the_structure_of_its_prompt(
    attack: str, method: Callable[..., AnsweringMethod]
) -> None:
    async def asked(passage: Passage, text: str) -> tuple[ChatMessage, ...]:
        engine = ScriptedEngine("Rome")
        answerer = answerer_of(engine, 5000)
        source = () if method is DirectMethod else (PassageStore([passage]),)
        built = method(*source, answerer, **({} if method in (DirectMethod, OracleMethod) else {"top_k": 1}))
        question = Question("q", text, retrieval_query="capital", gold_passage_ids=("p1",))
        await built.answer(question, built.defaults, drop)
        return tuple(engine.calls[-1][0])

    expected = await asked(Passage("p1", "capital", "x capital"), "capital?")
    passage = poisoned(attack)
    attacked = await asked(Passage("p1", passage.title, f"{passage.text} capital"), f"capital? {ATTACKS[attack]}")
    assert structure(attacked) == structure(expected)
    assert_no_control_token(attacked)
