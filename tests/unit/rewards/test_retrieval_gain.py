"""What each search adds to the evidence, on the blocks that the search loop records."""

from dataclasses import replace

import pytest

from searchrl.agent.types import Limits
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InformationBlock, Trajectory, Turn
from searchrl.rewards.retrieval_gain import retrieval_gains
from tests.fakes.in_memory_searcher import InMemorySearcher
from tests.fakes.scripted_rollout import PASSAGES, ask, finish, run_loop

TWO_HOPS = Question("q", "Where does Ann work?", ("Oslo",), gold_passage_ids=("a", "b"))
ANSWER_ONLY = replace(TWO_HOPS, gold_passage_ids=())
TEXTS = {"a": "Ann works for Acme", "b": "Acme is in Oslo", "c": "Bo sings"}


def block(query: str, *ids: str) -> InformationBlock:
    return InformationBlock(query, tuple(SearchResult(Passage(id, id, TEXTS[id]), 1.0, 1) for id in ids))


def rollout(*blocks: InformationBlock, turns: list[Turn]) -> Trajectory:
    return Trajectory("q", turns=turns, blocks=list(blocks))


def search(*queries: str) -> Turn:
    return Turn("t", "search", queries)


FINISH = Turn("t", "finish")


def test_a_search_earns_the_share_of_gold_passages_that_are_new() -> None:
    found = rollout(block("q", "a"), block("x", "a", "b"), block("y", "b"), turns=[search("x"), search("y"), FINISH])
    assert retrieval_gains(TWO_HOPS, found) == (0.5, 0.0, None)


def test_without_gold_passages_the_first_documents_with_an_answer_earn() -> None:
    found = rollout(block("x", "c", "a"), block("y", "b"), block("z", "b"), turns=[*map(search, "xyz"), FINISH])
    assert retrieval_gains(ANSWER_ONLY, found) == (0.0, 1.0, 0.0, None)


def test_repeating_the_question_as_a_query_earns_nothing_that_the_initial_documents_have() -> None:
    text = TWO_HOPS.retrieval_query
    found = rollout(block(text, "a"), block(text, "a"), turns=[search(text), FINISH])
    assert retrieval_gains(TWO_HOPS, found) == (0.0, None)


def test_several_queries_of_a_turn_are_one_search() -> None:
    found = rollout(block("x", "a"), block("y", "b"), turns=[search("x", "y"), FINISH])
    assert retrieval_gains(TWO_HOPS, found) == (1.0, None)


def test_a_search_whose_documents_did_not_fit_earns_nothing() -> None:
    found = rollout(block("q", "c"), block("x", "a"), turns=[search("x"), search("y")])
    assert retrieval_gains(TWO_HOPS, found) == (0.5, None)


def test_blocks_of_other_actions_leave_the_turns_without_gains() -> None:
    assert retrieval_gains(TWO_HOPS, rollout(block("q", "a"), block("r", "b"), turns=[FINISH])) == ()


@pytest.mark.parametrize("has_initial", [True, False])
async def test_the_blocks_are_those_of_the_search_loop(has_initial: bool) -> None:
    searcher = InMemorySearcher(PASSAGES)
    initial = [SearchResult(PASSAGES[0], 1.0, 1)] if has_initial else None
    turns = [ask("word3"), ask("word4"), finish()]
    trajectory, _, _ = await run_loop(turns, searcher=searcher, initial=initial, limits=Limits(max_searches=3, top_k=1))
    shown = [[result.passage.id for result in one.results] for one in trajectory.blocks[-2:]]
    gold = replace(TWO_HOPS, gold_passage_ids=(shown[0][0], "elsewhere"))
    assert retrieval_gains(gold, trajectory)[0] == 0.5
    assert len(retrieval_gains(gold, trajectory)) == 3 and retrieval_gains(gold, trajectory)[2] is None
