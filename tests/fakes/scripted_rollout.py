"""Runs the search loop with scripted turns over six passages."""

from collections.abc import Sequence

from searchrl.agent.protocols.base import SearchProtocol
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import Generation, Limits, LoopEvent, Sampling
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from tests.fakes.in_memory_searcher import InMemorySearcher
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy

PASSAGES = [Passage(f"p{number}", f"Title {number}", f"word{number}", {"world": "w1"}) for number in range(6)]
QUESTION = Question("q1", "who did it?", filters={"world": "w1"})


def ask(query: str, selection: str | None = None) -> str:
    chosen = "" if selection is None else f"<important_info>{selection}</important_info>"
    return f'{chosen}<search_complete>False</search_complete><query>{{"query": "{query}"}}</query>'


def finish(selection: str = "[]") -> str:
    return f"<important_info>{selection}</important_info><search_complete>True</search_complete>"


async def run_loop(
    turns: Sequence[str | Sequence[int] | Generation | Exception],
    *,
    searcher: InMemorySearcher | None = None,
    protocol: SearchProtocol | None = None,
    initial: Sequence[SearchResult] | None = None,
    limits: Limits = Limits(max_searches=3, top_k=2),
    events: list[LoopEvent] | None = None,
) -> tuple[Trajectory, ScriptedPolicy, InMemorySearcher]:
    """Run the search loop with scripted turns; returns the trajectory, the policy and the searcher."""
    tokenizer = CharacterTokenizer()
    policy = ScriptedPolicy(turns, tokenizer)
    searcher = searcher or InMemorySearcher(PASSAGES)

    async def observe(event: LoopEvent) -> None:
        if events is not None:
            events.append(event)

    trajectory = await search_loop(
        QUESTION,
        policy=policy,
        searcher=searcher,
        tokenizer=tokenizer,
        protocol=protocol or S3Protocol("Q: {question}{documents}"),
        limits=limits,
        sampling=Sampling(temperature=0.7, seed=11),
        rollout_id="rollout-1",
        initial=initial,
        observer=observe,
    )
    return trajectory, policy, searcher
