"""Whatever the policy samples, the records of a rollout stay consistent."""

from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols import PROTOCOLS
from searchrl.agent.protocols.base import SearchProtocol
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import Generation, Limits, Sampling, StopReason
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import TokenKind, Trajectory
from tests.fakes.in_memory_searcher import InMemorySearcher, results_of
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy

PASSAGES = [Passage(f"p{n}", f"T{n} (x)", "<query>ü</query> </information> Doc 1(Title: 日本)") for n in range(4)]
EVERY_PROTOCOL = [
    build("<question>{question}{documents}", Limits()) for modes in PROTOCOLS.values() for build in modes.values()
]
S3 = PROTOCOLS["s3"]["strict"]("{question}{documents}", Limits())
PIECES = [
    "<think>", "</think>", "<query>", "</query>", '{"query": "x"}', "<important_info>[1, 2]</important_info>",
    "<search_complete>False</search_complete>", "<search_complete>True</search_complete>", "<search>", "</search>",
    "<answer>", "</answer>", "</information>", "日本", "🦊", "\x00", "e\u0301", "1",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join)


@st.composite
def generations(draw: st.DrawFn) -> Generation:
    ids = tuple(CharacterTokenizer().encode(draw(texts)))
    ids += draw(st.sampled_from([(), (CharacterTokenizer.eos_id,)]))
    reason = draw(st.sampled_from(["stop", "length"]))
    return Generation(ids, tuple(-0.5 for _ in ids), tuple(3 for _ in ids), reason)


async def roll_out(turns: list[Generation], protocol: SearchProtocol, limits: Limits) -> Trajectory:
    """Run the search loop with scripted generations and two initial documents."""
    return await search_loop(
        Question("q", "who?"),
        policy=ScriptedPolicy(turns, CharacterTokenizer()),
        searcher=InMemorySearcher(PASSAGES),
        tokenizer=CharacterTokenizer(),
        protocol=protocol,
        limits=limits,
        sampling=Sampling(seed=1),
        rollout_id="r",
        initial=results_of(*PASSAGES[:2]),
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(generations(), min_size=4, max_size=4),
    st.sampled_from(EVERY_PROTOCOL),
    st.integers(0, 3),
    st.sampled_from([60, 400, 8000]),
    st.sampled_from([10, 120, 1400]),
)
async def test_any_output_leaves_parallel_arrays_and_a_reason_to_stop(
    turns: list[Generation], protocol: SearchProtocol, max_searches: int, context: int, observation: int
) -> None:
    limits = Limits(max_searches=max_searches, top_k=2, max_context_tokens=context, max_observation_tokens=observation)
    trajectory = await roll_out(turns, protocol, limits)
    tokens = trajectory.tokens
    assert len(tokens.ids) == len(tokens.mask) == len(tokens.logprobs) == len(tokens.versions) == len(tokens.kinds)
    sampled = [token for turn in turns[: len(trajectory.turns)] for token in turn.ids]
    assert sum(tokens.mask) == len(sampled)
    assert [token for token, is_sampled in zip(tokens.ids, tokens.mask, strict=True) if is_sampled] == sampled
    given_kinds = {int(TokenKind.PROMPT), int(TokenKind.OBSERVATION)}
    assert all((kind not in given_kinds) == flag for kind, flag in zip(tokens.kinds, tokens.mask, strict=True))
    assert StopReason(trajectory.stop_reason)
    assert len(trajectory.turns) <= max_searches + 1
    assert trajectory.searches <= max_searches
    assert len({passage.id for passage in trajectory.documents}) == len(trajectory.documents)
    for block in trajectory.blocks:
        assert all(1 <= position <= len(block.results) for position in block.selection or ())


async def test_empty_outputs_end_the_rollout_as_malformed() -> None:
    trajectory = await roll_out([Generation((), (), (), "stop")], S3, Limits())
    assert trajectory.stop_reason == StopReason.MALFORMED
    assert sum(trajectory.tokens.mask) == 0


async def test_a_huge_output_is_handled() -> None:
    ids = tuple(CharacterTokenizer().encode("<query>日本" * 20_000))
    turn = Generation(ids, (-1.0,) * len(ids), (1,) * len(ids), "length")
    trajectory = await roll_out([turn], S3, Limits(max_turn_tokens=10**6, max_context_tokens=10**7))
    assert trajectory.stop_reason == StopReason.TRUNCATED
    assert sum(trajectory.tokens.mask) == len(ids)
