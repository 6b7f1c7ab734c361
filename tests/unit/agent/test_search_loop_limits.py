"""The limits of a rollout: searches, tokens of a turn, of an observation and of the context, and seconds."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from searchrl.agent.protocols.s3_legacy import S3LegacyProtocol
from searchrl.agent.protocols.search_r1 import SearchR1Protocol
from searchrl.agent.types import Generation, Limits, StopReason
from searchrl.domain.passage import SearchResult
from searchrl.domain.trajectory import TokenKind
from tests.fakes.in_memory_searcher import InMemorySearcher, results_of
from tests.fakes.scripted_policy import CharacterTokenizer
from tests.fakes.scripted_rollout import PASSAGES, ask, finish, run_loop


async def test_after_the_last_search_one_more_generation_is_made_and_its_query_ignored() -> None:
    limits = Limits(max_searches=2, top_k=1)
    trajectory, policy, searcher = await run_loop(
        [ask("word1"), ask("word2", "[1]"), ask("word3", "[1]")], limits=limits
    )
    assert trajectory.stop_reason == StopReason.MAX_SEARCHES
    assert len(policy.calls) == 3
    assert len(searcher.calls) == 2
    assert trajectory.searches == 2
    assert trajectory.turns[-1].queries == ()
    assert [passage.id for passage in trajectory.documents] == ["p1", "p2"]


async def test_finishing_in_the_last_generation_completes() -> None:
    trajectory, _, _ = await run_loop([ask("word1"), finish("[1]")], limits=Limits(max_searches=1))
    assert trajectory.stop_reason == StopReason.COMPLETED


async def test_no_search_allowed_means_one_generation() -> None:
    trajectory, policy, searcher = await run_loop([ask("word1")], limits=Limits(max_searches=0))
    assert (len(policy.calls), len(searcher.calls)) == (1, 0)
    assert trajectory.stop_reason == StopReason.MAX_SEARCHES


async def test_a_turn_cut_by_its_token_limit_ends_the_rollout_as_truncated() -> None:
    cut = Generation(tuple(CharacterTokenizer().encode("<think>hmm")), (-1.0,) * 10, (1,) * 10, "length")
    trajectory, _, _ = await run_loop([cut], initial=results_of(PASSAGES[0]))
    assert trajectory.stop_reason == StopReason.TRUNCATED
    assert trajectory.turns[0].action == "truncated"
    assert not trajectory.well_formed
    assert trajectory.documents == (PASSAGES[0],)


async def test_a_turn_that_reached_its_stop_tag_with_its_last_token_is_not_truncated() -> None:
    ids = tuple(CharacterTokenizer().encode(ask("word1")))
    exactly_full = Generation(ids, (-1.0,) * len(ids), (1,) * len(ids), "length")
    trajectory, _, searcher = await run_loop([exactly_full, finish("[1]")])
    assert trajectory.stop_reason == StopReason.COMPLETED
    assert len(searcher.calls) == 1


async def test_a_selection_made_before_the_token_limit_still_counts() -> None:
    ids = tuple(CharacterTokenizer().encode("<important_info>[2]</important_info><search_com"))
    cut = Generation(ids, (-1.0,) * len(ids), (1,) * len(ids), "length")
    trajectory, _, _ = await run_loop([cut], initial=results_of(*PASSAGES[:2]))
    assert trajectory.documents == (PASSAGES[1],)


async def test_a_prompt_that_fills_the_context_ends_the_rollout_without_a_turn() -> None:
    trajectory, policy, _ = await run_loop([], limits=Limits(max_context_tokens=10))
    assert trajectory.stop_reason == StopReason.CONTEXT_OVERFLOW
    assert policy.calls == []
    assert trajectory.turns == []


async def test_an_observation_that_fills_the_context_is_neither_shown_nor_recorded() -> None:
    limits = Limits(max_searches=3, top_k=2, max_context_tokens=150)
    trajectory, _, searcher = await run_loop([ask("word1")], limits=limits)
    assert trajectory.stop_reason == StopReason.CONTEXT_OVERFLOW
    assert len(searcher.calls) == 1
    assert trajectory.blocks == []
    assert len(trajectory.tokens) <= 150


async def test_an_observation_needs_room_for_one_token_after_it() -> None:
    turns = [ask("word1"), finish("[1]")]
    trajectory, _, _ = await run_loop(turns)
    shown = len(trajectory.tokens) - len(turns[1])
    too_small, _, _ = await run_loop(turns, limits=Limits(top_k=2, max_context_tokens=shown))
    just_enough, policy, _ = await run_loop(turns, limits=Limits(top_k=2, max_context_tokens=shown + 1))
    assert too_small.stop_reason == StopReason.CONTEXT_OVERFLOW
    assert too_small.blocks == []
    assert len(just_enough.blocks) == 1
    assert policy.calls[1].sampling.max_tokens == 1


async def test_the_last_turn_gets_only_the_room_that_is_left() -> None:
    limits = Limits(max_turn_tokens=500, max_context_tokens=300)
    cut = Generation((66,) * 3, (-1.0,) * 3, (1,) * 3, "length")
    trajectory, policy, _ = await run_loop([cut], limits=limits)
    assert policy.calls[0].sampling.max_tokens == 300 - len(policy.calls[0].prompt_ids)
    assert trajectory.stop_reason == StopReason.CONTEXT_OVERFLOW


async def test_documents_that_do_not_fit_the_observation_are_dropped_completely_from_the_end() -> None:
    limits = Limits(max_searches=1, top_k=3, max_observation_tokens=90)
    trajectory, _, _ = await run_loop([ask("word1 word2 word3"), finish("[1]")], limits=limits)
    shown = trajectory.blocks[0].results
    assert 0 < len(shown) < 3
    text = CharacterTokenizer().decode(
        [token for token, kind in zip(trajectory.tokens.ids, trajectory.tokens.kinds, strict=True) if kind == 1]
    )
    assert len(text) <= 90
    assert text.endswith("\n</information>\n\n")
    assert text.count("Doc ") == len(shown)


async def test_the_time_limit_cancels_the_pending_call_and_keeps_the_finished_turns() -> None:
    canceled = asyncio.Event()

    class Stuck(InMemorySearcher):
        async def search(
            self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]
        ) -> list[list[SearchResult]]:
            try:
                await asyncio.Event().wait()
            finally:
                canceled.set()
            return []

    limits = Limits(seconds=0.05)
    trajectory, _, _ = await run_loop(
        [ask("word1", "[1]")], searcher=Stuck([]), limits=limits, initial=results_of(PASSAGES[2])
    )
    assert trajectory.stop_reason == StopReason.TIME_LIMIT
    assert canceled.is_set()
    assert len(trajectory.turns) == 1
    assert trajectory.documents == (PASSAGES[2],)
    assert sum(trajectory.tokens.mask) == len(ask("word1", "[1]"))


async def test_a_timeout_inside_the_policy_is_not_taken_for_the_rollouts_own_limit() -> None:
    with pytest.raises(TimeoutError):
        await run_loop([TimeoutError()], limits=Limits(seconds=60.0))


async def test_legacy_s3_reads_a_truncated_turn_like_any_other() -> None:
    ids = tuple(CharacterTokenizer().encode("so many thoughts"))
    cut = Generation(ids, (-1.0,) * len(ids), (1,) * len(ids), "length")
    trajectory, policy, _ = await run_loop([cut, finish("[]")], protocol=S3LegacyProtocol("{question}"))
    assert len(policy.calls) == 2
    assert trajectory.turns[0].action == "invalid"


async def test_invalid_turns_use_up_the_search_budget() -> None:
    trajectory, policy, _ = await run_loop(
        ["hm"] * 9, protocol=SearchR1Protocol("{question}"), limits=Limits(max_searches=2)
    )
    assert len(policy.calls) == 3
    assert trajectory.stop_reason == StopReason.MALFORMED
    assert trajectory.searches == 0


async def test_legacy_cuts_a_long_observation_within_its_closing_tag() -> None:
    limits = Limits(max_searches=1, top_k=2, max_observation_tokens=40)
    trajectory, policy, _ = await run_loop(
        [ask("word1"), finish("[1]")], protocol=S3LegacyProtocol("{question}"), limits=limits
    )
    observation = policy.calls[1].prompt_ids[-40:]
    assert "</information>" not in CharacterTokenizer().decode(observation)
    assert trajectory.tokens.kinds.count(int(TokenKind.OBSERVATION)) == 40
    assert len(trajectory.blocks[0].results) == 2
