"""The prompt of a question with its documents: layout, token budget, templates and untrusted text."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from searchrl.domain.answer import TextWritten
from searchrl.domain.passage import Passage
from searchrl.errors import ConfigurationError, InvalidRequest, Unavailable
from searchrl.model_server.settings import VllmSettings
from services.generator.engines.base import ChatMessage
from services.generator.engines.reader import ReaderEngine
from services.generator.engines.settings import ChatEngineSettings
from services.generator.prompting.context_answerer import ContextAnswerer, ContextSettings, ReplyOptions
from services.generator.prompting.context_template import CLOSED_BOOK, ContextTemplate, ModelTokenCounter, WordCounter
from services.generator.settings import GeneratorSettings
from services.generator.wiring import build_service
from tests.fakes.generator_parts import PASSAGES, answerer_of
from tests.fakes.scripted_engine import ScriptedEngine

WORDS = WordCounter(1.0)


def test_documents_are_numbered_in_the_system_message_and_the_question_stands_alone() -> None:
    message = ContextTemplate(WORDS, 1000, "Read:\n{documents}End.").render("Who?", PASSAGES[:2])
    assert message.messages == (
        ChatMessage(
            "system",
            'Read:\nDoc 1 (Title: "Amber Falcon")\nAmber Falcon was directed by Jon Reed.\n\n'
            'Doc 2 (Title: "Jon Reed")\nJon Reed was born in Port Ellis.\n\nEnd.',
        ),
        ChatMessage("user", "Who?"),
    )
    assert message.documents == PASSAGES[:2]


def test_without_documents_the_prompt_is_closed_book() -> None:
    message = ContextTemplate(WORDS, 1000).render("Who?", ())
    assert message.messages == (ChatMessage("system", CLOSED_BOOK), ChatMessage("user", "Who?"))
    assert (message.documents, message.context_tokens) == ((), 0)


def test_a_document_that_is_too_long_is_truncated_and_its_neighbors_stay_complete() -> None:
    long = Passage("long", "Long", "word " * 500)
    message = ContextTemplate(WORDS, 100).render("Who?", [PASSAGES[0], long, PASSAGES[1]])
    assert [passage.id for passage in message.documents] == ["film", "long", "person"]
    assert (message.documents[0], message.documents[2]) == PASSAGES[:2]
    assert message.cut == ("long",)
    assert message.documents[1].text.startswith("word word") and message.documents[1].text.endswith("word ...")
    assert message.documents[1].text in message.messages[1].content
    assert 90 < message.context_tokens <= 100


def test_without_room_for_a_sentence_of_each_the_long_one_is_left_out() -> None:
    long = Passage("long", "Long", "word " * 50)
    message = ContextTemplate(WORDS, 40).render("Who?", [PASSAGES[0], long, PASSAGES[1]])
    assert [passage.id for passage in message.documents] == ["film", "person"]
    assert (message.cut, message.left_out) == ((), ("long",))
    assert 'Doc 2 (Title: "Jon Reed")' in message.messages[1].content
    # Doc 1 ( Title : " Amber Falcon " ) = 10, the sentence = 8; the second document: 10 + 8
    assert message.context_tokens == 36


@pytest.mark.parametrize("budget", [16, 30, 64, 512])
def test_long_documents_never_make_an_answer_closed_book(budget: int) -> None:
    articles = [Passage(f"a{n}", "Article", f"fact{n} " * 12_000) for n in range(3)]
    message = ContextTemplate(WORDS, budget).render("Who?", articles)
    assert message.documents
    assert "fact0" in message.messages[1].content
    assert message.context_tokens <= budget
    assert message.cut == tuple(passage.id for passage in message.documents)


def test_a_budget_that_holds_no_beginning_of_a_document_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="5 context tokens"):
        ContextTemplate(WORDS, 5).render("Who?", PASSAGES)


def test_by_default_text_from_outside_is_never_in_the_system_message() -> None:
    message = ContextTemplate(WORDS, 1000).render("Who?", PASSAGES[:2])
    system, user = message.messages
    assert (system.role, user.role) == ("system", "user")
    assert not any(passage.text in system.content for passage in PASSAGES)
    assert user.content.startswith("<documents>\nDoc 1 (Title:")
    assert user.content.endswith("\n\n</documents>\n\nWho?")


def test_a_template_with_the_question_is_one_user_message() -> None:
    message = ContextTemplate(WORDS, 1000, "Q: {question}\n{documents}End").render("{documents}?", PASSAGES[:1])
    (user,) = message.messages
    assert user.role == "user"
    assert user.content.startswith("Q: {documents}?\nDoc 1 (Title:") and user.content.endswith("End")


@pytest.mark.parametrize("template", ["none", "{documents} {documents}", "{documents} {question} {question}"])
def test_a_template_has_exactly_one_place_for_documents(template: str) -> None:
    with pytest.raises(ConfigurationError, match="exactly once"):
        ContextTemplate(WORDS, 10, template)


def test_a_template_file_replaces_the_default(tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_text("Mine: {documents}")
    message = ContextTemplate.from_file(file, WORDS, 1000).render("Who?", PASSAGES[:1])
    assert message.messages[0].content.startswith("Mine: Doc 1")
    with pytest.raises(ConfigurationError, match="cannot read"):
        ContextTemplate.from_file(tmp_path / "missing.txt", WORDS, 1000)


def test_text_with_braces_stays_unchanged() -> None:
    message = ContextTemplate(WORDS, 1000).render("{documents}?", [Passage("a", "{documents}", "{x} {documents}")])
    assert message.messages[1].content.count("{documents}") == 3
    assert message.messages[1].content.endswith("\n\n{documents}?")


def test_a_missing_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tokenizer_dir"):
        ModelTokenCounter(tmp_path)


def test_an_estimate_grows_with_the_text() -> None:
    assert WordCounter().count("one two three.") == round(4 * 1.3)
    assert WordCounter().count("") == 0


async def test_the_reader_answers_only_what_its_documents_state() -> None:
    answerer = answerer_of(ReaderEngine())
    question = "What is the director of Amber Falcon?"
    found = await answerer.answer(question, PASSAGES)
    missing = await answerer.answer(question, PASSAGES[1:])
    assert (found.text, missing.text) == ("Jon Reed", "unknown")
    assert found.usage.completion_tokens == 2
    assert found.provenance.generator_model == "reader"


async def test_a_written_answer_is_the_same_as_one_given_at_once() -> None:
    pieces: list[str] = []

    async def keep(step: TextWritten) -> None:
        pieces.append(step.text)

    answerer = answerer_of(ReaderEngine())
    question = "What is the director of Amber Falcon?"
    assert await answerer.write(question, PASSAGES, keep) == await answerer.answer(question, PASSAGES)
    assert pieces == ["Jon", " Reed"]


async def test_a_stream_without_its_reply_is_no_answer() -> None:
    class Cut(ScriptedEngine):
        async def stream(self, messages, *, max_tokens, temperature=0.0):  # type: ignore[no-untyped-def]
            yield "half"

    async def drop(step: TextWritten) -> None:
        pass

    answerer = ContextAnswerer(Cut("x"), ContextTemplate(WORDS, 10), ContextSettings(max_answer_tokens=5))
    with pytest.raises(Unavailable, match="before its reply was complete"):
        await answerer.write("Who?", (), drop)


class SmallContext(ScriptedEngine):
    """An engine of a model server: it refuses a prompt that leaves less than ``max_tokens`` of its context."""

    length = 1200

    async def chat(self, messages, *, max_tokens, temperature=0.0, choices=()):  # type: ignore[no-untyped-def]
        if sum(WORDS.count(message.content) for message in messages) + max_tokens > self.length:
            raise InvalidRequest("the prompt and max_tokens exceed the context length")
        return await super().chat(messages, max_tokens=max_tokens, temperature=temperature, choices=choices)


LONG = Passage("long", "Long", "word " * 2000)
HISTORY = (ChatMessage("user", "early " * 150), ChatMessage("assistant", "reply " * 150))


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        (ReplyOptions(), 400),
        (ReplyOptions(max_tokens=500), 188),
        (ReplyOptions(max_tokens=1), 400),
        (ReplyOptions(history=HISTORY, instructions="Be brief."), 353),
    ],
)
async def test_documents_leave_room_for_the_reply_and_the_conversation_that_are_asked_for(
    options: ReplyOptions, budget: int
) -> None:
    async def drop(step: TextWritten) -> None:
        pass

    template = ContextTemplate(WORDS, 400)
    answerer = ContextAnswerer(
        SmallContext("x"), template, ContextSettings(max_answer_tokens=32), context_length=SmallContext.length
    )
    written = await answerer.write("Who?", [LONG], drop, options)
    assert written.provenance.max_context_tokens == budget
    assert written.cut == ("long",)
    assert 0.9 * budget < written.usage.context_tokens <= budget


async def test_a_reply_that_leaves_no_room_for_documents_is_refused_with_the_reason() -> None:
    async def drop(step: TextWritten) -> None:
        pass

    engine = SmallContext("x")
    answerer = ContextAnswerer(engine, ContextTemplate(WORDS, 400), ContextSettings(), context_length=engine.length)
    with pytest.raises(InvalidRequest, match="no room for documents in the model's context of 1200 tokens"):
        await answerer.write("Who?", [LONG], drop, ReplyOptions(max_tokens=1000))
    assert (await answerer.write("Who?", (), drop, ReplyOptions(max_tokens=1000))).text == "x"


@pytest.mark.parametrize(("max_model_len", "fits"), [(640, False), (700, True)])
def test_vllms_context_length_limits_the_documents(max_model_len: int, fits: bool) -> None:
    vllm = VllmSettings(executable=Path(sys.executable), model="tiny", max_model_len=max_model_len)
    settings = GeneratorSettings(engine=ChatEngineSettings(kind="vllm", vllm=vllm))
    with nullcontext() if fits else pytest.raises(ConfigurationError, match="no room for documents"):
        build_service(settings, CollectorRegistry())


def test_the_version_of_a_template_changes_with_its_wording_and_not_with_its_budget() -> None:
    other = "Answer from {documents}"
    assert ContextTemplate(WORDS, 10).version == ContextTemplate(WORDS, 99).version
    assert ContextTemplate(WORDS, 10).version != ContextTemplate(WORDS, 10, other).version
