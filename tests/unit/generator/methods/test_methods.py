"""The methods without a trained searcher: direct, naive RAG, title heuristic, oracle and random retriever."""

from collections.abc import Callable

import pytest

from searchrl.agent.types import DocumentsFound, DocumentsSelected, QueriesIssued
from searchrl.domain.answer import Answer, TextWritten
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound, Unavailable
from services.generator.engines.reader import ReaderEngine
from services.generator.methods.base import AnsweringMethod, AnswerOptions, Step
from services.generator.methods.direct import DirectMethod
from services.generator.methods.oracle import OracleMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.random_retriever import RandomRetrieverMethod
from services.generator.methods.title_heuristic import TitleHeuristicMethod
from tests.fakes.generator_parts import PASSAGES, PassageStore, answerer_of
from tests.fakes.scripted_engine import ScriptedEngine

ONE_HOP = Question("q1", "What is the director of Amber Falcon?")
TWO_HOPS = Question(
    "q2", "What is the birthplace of the director of Amber Falcon?", gold_passage_ids=("film", "person")
)
NO_OPTIONS = AnswerOptions()


async def run(
    method: AnsweringMethod, question: Question, options: AnswerOptions = NO_OPTIONS
) -> tuple[list[Step], Answer]:
    steps: list[Step] = []

    async def keep(step: Step) -> None:
        steps.append(step)

    final = await method.answer(question, options.over(method.defaults), keep)
    return steps, final


async def test_direct_answers_without_documents() -> None:
    steps, final = await run(DirectMethod(answerer_of(ReaderEngine())), ONE_HOP)
    assert (final.text, final.documents, final.searches, final.usage.context_tokens) == ("unknown", (), 0, 0)
    assert steps == [TextWritten("unknown")]


async def test_rag_searches_the_question_once_and_cites_what_it_read() -> None:
    store = PassageStore(PASSAGES)
    steps, final = await run(RagMethod(store, answerer_of(ReaderEngine()), top_k=2), ONE_HOP)
    assert final.text == "Jon Reed"
    assert store.calls == [((ONE_HOP.text,), 2, {})]
    assert isinstance(steps[0], DocumentsFound)
    assert final.documents == tuple(result.passage.id for result in steps[0].results)
    assert tuple(final.passages.values()) == tuple(result.passage for result in steps[0].results)
    assert final.usage.context_tokens > 0


async def test_rag_takes_top_k_and_filters_from_the_question() -> None:
    store = PassageStore([Passage("a", "A", "x", {"world": "w1"}), Passage("b", "B", "x", {"world": "w2"})])
    question = Question("q", "x", filters={"world": "w2"})
    _, final = await run(RagMethod(store, answerer_of(ReaderEngine()), 3), question, AnswerOptions(top_k=7))
    assert store.calls == [(("x",), 7, {"world": "w2"})]
    assert final.documents == ("b",)


@pytest.mark.parametrize("method", [RagMethod, TitleHeuristicMethod, RandomRetrieverMethod])
async def test_the_retriever_gets_the_retrieval_query_and_the_generator_its_own_text(method: type[RagMethod]) -> None:
    store, engine = PassageStore(PASSAGES), ScriptedEngine("Jon Reed")
    question = Question(
        "q", "for the policy", generator_text="Amber Falcon?\nOptions:\nA: x", retrieval_query="Amber Falcon"
    )
    await run(method(store, answerer_of(engine), top_k=2), question)
    assert store.calls[0][0] == ("Amber Falcon",)
    assert engine.calls[0][0][-1].content.endswith("\n\nAmber Falcon?\nOptions:\nA: x")


async def test_the_title_heuristic_follows_titles_and_then_names_and_keeps_every_document_once() -> None:
    store = PassageStore(PASSAGES)
    steps, final = await run(TitleHeuristicMethod(store, answerer_of(ReaderEngine()), top_k=2), TWO_HOPS)
    # found first: the film and the person; the person's text names Port Ellis, which is no title found so far
    assert steps[1] == QueriesIssued(1, ("Amber Falcon", "Jon Reed", "Port Ellis"))
    assert len(store.calls) == 2  # the titles travel together
    assert final.searches == 3
    assert len(set(final.documents)) == len(final.documents)
    assert {"film", "person", "city"} <= set(final.documents)
    assert final.text == "Port Ellis"


async def test_the_title_heuristic_keeps_to_max_searches() -> None:
    store = PassageStore(PASSAGES)
    method = TitleHeuristicMethod(store, answerer_of(ReaderEngine()), top_k=3)
    assert (await run(method, TWO_HOPS, AnswerOptions(max_searches=1)))[1].searches == 1
    assert (await run(method, TWO_HOPS, AnswerOptions(max_searches=0)))[1].searches == 0


async def test_the_oracle_reads_exactly_the_gold_passages_in_order() -> None:
    _, final = await run(OracleMethod(PassageStore(PASSAGES), answerer_of(ReaderEngine())), TWO_HOPS)
    assert final.documents == ("film", "person")
    assert final.text == "Port Ellis"


async def test_the_oracle_needs_gold_passages_that_exist() -> None:
    oracle = OracleMethod(PassageStore(PASSAGES), answerer_of(ReaderEngine()))
    with pytest.raises(InvalidRequest, match="gold_passage_ids"):
        await run(oracle, ONE_HOP)
    with pytest.raises(NotFound, match="ghost"):
        await run(oracle, Question("q", "x", gold_passage_ids=("film", "ghost")))


async def test_the_random_retriever_draws_the_same_documents_for_the_same_seed_only() -> None:
    passages = [Passage(f"p{n}", f"Title{n}", f"alpha{n % 7} beta{n % 5} gamma{n % 3} text") for n in range(60)]
    method = RandomRetrieverMethod(PassageStore(passages), answerer_of(ReaderEngine()), top_k=3)
    question = Question("q", "alpha1 beta1 gamma1")
    first = (await run(method, question, AnswerOptions(seed=1)))[1].documents
    again = (await run(method, question, AnswerOptions(seed=1)))[1].documents
    others = {(await run(method, question, AnswerOptions(seed=seed)))[1].documents for seed in range(2, 12)}
    assert first == again
    assert len(first) == len(set(first)) == 3
    assert len(others) > 5
    best = {result.passage.id for result in (await PassageStore(passages).search([question.text], 3, {}))[0]}
    assert sum(bool(best & set(citations)) for citations in others) < len(others) / 2


async def test_the_random_retriever_keeps_to_the_filters_and_survives_an_empty_corpus() -> None:
    passages = [Passage(f"p{n}", "T", f"word{n} text", {"world": f"w{n % 2}"}) for n in range(20)]
    method = RandomRetrieverMethod(PassageStore(passages), answerer_of(ReaderEngine()), top_k=3)
    _, final = await run(method, Question("q", "text", filters={"world": "w1"}))
    assert final.documents and all(passage.metadata["world"] == "w1" for passage in final.passages.values())
    _, nothing = await run(method, Question("q", "text", filters={"world": "none"}))
    assert nothing.documents == ()


@pytest.mark.parametrize("method", [RagMethod, TitleHeuristicMethod, RandomRetrieverMethod])
async def test_a_retriever_that_fails_is_an_error_and_never_an_answer(method: type[RagMethod]) -> None:
    store = PassageStore(PASSAGES, failures=[Unavailable("retriever gone")])
    with pytest.raises(Unavailable, match="retriever gone"):
        await run(method(store, answerer_of(ReaderEngine()), 3), ONE_HOP)


@pytest.mark.parametrize(
    ("make", "question", "top_k"),
    [
        (lambda store, answerer: RagMethod(store, answerer, 3), ONE_HOP, 3),
        (lambda store, answerer: TitleHeuristicMethod(store, answerer, 3), ONE_HOP, 3),
        (lambda store, answerer: RandomRetrieverMethod(store, answerer, 3), ONE_HOP, 3),
        (lambda store, answerer: OracleMethod(store, answerer), TWO_HOPS, 0),
    ],
    ids=["rag", "title_heuristic", "random_retriever", "oracle"],
)
async def test_every_method_names_the_index_generation_that_served_it(
    make: Callable[..., AnsweringMethod], question: Question, top_k: int
) -> None:
    store = PassageStore(PASSAGES)
    store.mode, store.generations = "hybrid", ["g7"]
    _, final = await run(make(store, answerer_of(ReaderEngine("reader-1"))), question)
    made = final.provenance
    assert (made.index_generations, made.mode, made.top_k) == (("g7",), "hybrid", top_k)
    assert made.generator_model == "reader-1"


async def test_an_answer_without_retrieval_names_no_index() -> None:
    _, final = await run(DirectMethod(answerer_of(ReaderEngine())), ONE_HOP)
    assert (final.provenance.index_generations, final.provenance.mode, final.provenance.top_k) == ((), "", 0)


async def test_documents_that_do_not_fit_the_context_are_not_cited() -> None:
    store = PassageStore([Passage("long", "Director", "director " * 500), *PASSAGES])
    _, final = await run(RagMethod(store, answerer_of(ReaderEngine(), 40), top_k=3), ONE_HOP)
    assert "long" not in final.documents
    assert final.documents


def test_every_step_kind_is_known() -> None:
    assert {kind.__name__ for kind in Step.__args__} == {  # type: ignore[attr-defined]
        QueriesIssued.__name__,
        DocumentsFound.__name__,
        DocumentsSelected.__name__,
        TextWritten.__name__,
    }
