"""Failures of the policy and the searcher end a rollout as errors; a paused engine does not."""

from collections.abc import Mapping, Sequence

import pytest

from searchrl.agent.types import Generation, StopReason
from searchrl.domain.passage import SearchResult
from searchrl.errors import ServiceError, Unavailable
from tests.fakes.in_memory_searcher import InMemorySearcher, results_of
from tests.fakes.scripted_policy import CharacterTokenizer
from tests.fakes.scripted_rollout import PASSAGES, ask, finish, run_loop


async def test_a_retriever_outage_raises_its_own_error_and_never_becomes_text() -> None:
    searcher = InMemorySearcher(PASSAGES, failures=[Unavailable("retriever is down")])
    with pytest.raises(Unavailable, match="retriever is down"):
        await run_loop([ask("word1"), finish()], searcher=searcher)


async def test_a_policy_outage_raises_its_own_error() -> None:
    with pytest.raises(Unavailable):
        await run_loop([Unavailable("engine is down")])


async def test_an_engine_that_contradicts_itself_is_an_infrastructure_error() -> None:
    with pytest.raises(ServiceError, match="2 ids, 1 log-prob"):
        await run_loop([Generation((5, 6), (-1.0,), (1, 1), "stop")])


async def test_a_searcher_that_answers_the_wrong_number_of_queries_is_an_infrastructure_error() -> None:
    class Forgetful(InMemorySearcher):
        async def search(
            self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]
        ) -> list[list[SearchResult]]:
            return []

    with pytest.raises(ServiceError, match="1 queries with 0 lists"):
        await run_loop([ask("word1")], searcher=Forgetful([]))


async def test_a_paused_engine_continues_from_the_kept_tokens() -> None:
    encode = CharacterTokenizer().encode
    text = finish("[1]")
    head, tail = tuple(encode(text[:9])), tuple(encode(text[9:]))
    parts = [
        Generation(head, (-1.0,) * len(head), (4,) * len(head), "aborted"),
        Generation(tail, (-2.0,) * len(tail), (5,) * len(tail), "stop"),
    ]
    trajectory, policy, _ = await run_loop(parts, initial=results_of(PASSAGES[0]))
    assert trajectory.turns[0].text == text
    assert trajectory.stop_reason == StopReason.COMPLETED
    assert policy.calls[1].prompt_ids == policy.calls[0].prompt_ids + head
    assert policy.calls[1].sampling.max_tokens == policy.calls[0].sampling.max_tokens - len(head)
    assert policy.calls[1].sampling.seed != policy.calls[0].sampling.seed
    sampled = [v for v, m in zip(trajectory.tokens.versions, trajectory.tokens.mask, strict=True) if m]
    assert sampled == [4] * len(head) + [5] * len(tail)


async def test_an_engine_that_only_aborts_is_an_outage() -> None:
    with pytest.raises(Unavailable, match="aborted"):
        await run_loop([Generation((), (), (), "aborted")] * 5)
