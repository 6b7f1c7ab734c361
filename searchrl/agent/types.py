"""Defines what a search loop is given and returns: its limits, its ports, its events, and why it ended."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from searchrl.domain.passage import Passage, SearchResult


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one rollout. The three token budgets default to those of s3's training scripts.

    Attributes:
        max_searches: searches the policy may make; one more generation follows the last one.
        top_k: passages per search.
        max_selected: documents one selection may keep (strict mode).
        max_turn_tokens: sampled tokens per turn.
        max_observation_tokens: tokens of one information block; long documents are cut to fit.
        max_context_tokens: prompt plus everything after it; the rollout ends when the next turn cannot fit.
        seconds: wall-clock budget of the rollout; None for no limit.
    """

    # With these values at most 4 x 500 sampled tokens and 3 x 1400 observed ones follow the prompt, 6200 in all. That
    # leaves 1800 of the 8000 to the prompt, of which initial documents that are cut to fit take 1400 at most.
    max_searches: int = 3
    top_k: int = 3
    max_selected: int = 3
    max_turn_tokens: int = 500
    max_observation_tokens: int = 1400
    max_context_tokens: int = 8000
    seconds: float | None = None

    @property
    def max_sampled_tokens(self) -> int:
        """Most tokens that a rollout may sample in all its turns."""
        return min((self.max_searches + 1) * self.max_turn_tokens, self.max_context_tokens)


class StopReason(StrEnum):
    """Values of ``Trajectory.stop_reason``; also a metric label."""

    # Dashboards select by these words, and stored trajectories hold them, so a value keeps its spelling.
    COMPLETED = "completed"  # the policy said it was done, or answered
    MAX_SEARCHES = "max_searches"
    CONTEXT_OVERFLOW = "context_overflow"
    TRUNCATED = "truncated"  # the last turn hit its token limit
    MALFORMED = "malformed"  # the protocol has no reply to this output
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a policy samples. Temperature 0 is greedy; ``top_p`` 1 and ``top_k`` -1 switch truncation off.

    ``stop`` strings end a generation; the sampled tokens that spell the stop string are kept in the ids.
    ``seed`` makes this one call reproducible, regardless of the other requests in the engine's batch.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 500
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What a policy sampled for one prompt; the sequences have one entry per sampled token.

    Attributes:
        ids: sampled token ids, including the end-of-sequence token if one was sampled.
        logprobs: log-probability in nats of each id, after temperature.
        versions: policy version that sampled each id.
        finish_reason: "stop", "length" or "aborted".
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: str


class Policy(Protocol):
    """A language model that continues token ids with token ids."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        """Sample a continuation of ``prompt_ids``.

        ``rollout_id`` is the same for all turns of a rollout, so that an engine can reuse its prefix cache and a router
        can send every turn to the same engine.

        Raises:
            searchrl.errors.ServiceError: the engine failed; never a wrong or empty generation.
        """
        ...


class Tokenizer(Protocol):
    """Converts text to token ids and back.

    A Protocol because this package may import the standard library only; ``searchrl.tokenization`` implements it.
    """

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` without any special tokens added; tags that are special tokens become one id.

        Inside the untrusted ranges of a ``GuardedText`` no id is ever that of a control token.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; end-of-sequence and padding tokens are left out, tags are kept."""
        ...

    def render_prompt(self, text: str) -> list[int]:
        """Return the ids of one user message in the model's chat template, up to the start of the assistant's turn.

        A model without a chat template cannot be prompted; a base model that reads plain text needs a template that
        prints the message alone.
        """
        ...


class Searcher(Protocol):
    """Finds passages for queries."""

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        """Return one list of results per query, best first.

        Raises:
            searchrl.errors.ServiceError: retrieval failed; never an empty list in its place.
        """
        ...


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
"""Is called with each event as it happens; the loop waits for it."""
