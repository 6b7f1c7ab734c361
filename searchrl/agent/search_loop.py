"""How does a policy gather documents for a question? The only implementation of the multi-turn loop."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from searchrl.agent.limits import Limits
from searchrl.agent.ports import Policy, Sampling, Searcher, Tokenizer
from searchrl.agent.protocol import SearchProtocol
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class QueriesIssued:
    turn: int
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DocumentsFound:
    turn: int
    query: str
    results: tuple[SearchResult, ...]


@dataclass(frozen=True, slots=True)
class DocumentsSelected:
    turn: int
    passages: tuple[Passage, ...]


LoopEvent = QueriesIssued | DocumentsFound | DocumentsSelected
Observer = Callable[[LoopEvent], Awaitable[None]]


async def search_loop(
    question: Question,
    *,
    policy: Policy,
    searcher: Searcher,
    tokenizer: Tokenizer,
    protocol: SearchProtocol,
    limits: Limits,
    sampling: Sampling,
    rollout_id: str,
    initial: Sequence[SearchResult] | None = None,
    observer: Observer | None = None,
) -> Trajectory:
    """Run the loop for one question; see the module ``protocol`` for what a protocol decides."""
    raise NotImplementedError
