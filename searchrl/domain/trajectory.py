"""Records what happened in one rollout: its turns, its documents, its tokens, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from searchrl.domain.passage import Passage, SearchResult

NOT_SAMPLED = -1
"""Policy version of a token that the environment wrote; versions of policies start at 0."""


class TokenKind(IntEnum):
    """Kind of a token's span. Stored as int16 per token; the numbers are part of the file format."""

    PROMPT = 0
    OBSERVATION = 1
    THINK = 2
    QUERY = 3
    SELECTION = 4
    ANSWER = 5
    ACTION = 6  # sampled, but in none of the tagged spans


# A rollout with one search, during whose second turn the weights changed from version 12 to 13:
#
#               prompt  turn 0      observation  turn 1
#    tokens        812  140         610          95
#    mask        False  True        False        True
#    versions       -1  12          -1           12, 13
#    kinds      PROMPT  THINK, ..   OBSERVATION  THINK, ..
@dataclass(slots=True)
class TokenRecord:
    """Parallel arrays with one entry per token: the single source of truth for training.

    Attributes:
        ids: token ids exactly as fed and sampled; never decoded and encoded again.
        mask: True where the policy sampled the token.
        logprobs: behavior log-probability in nats (after temperature); 0.0 where not sampled.
        versions: policy version that sampled the token; -1 where not sampled.
        kinds: ``TokenKind`` of the token.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def append_given(self, ids: Sequence[int], kind: TokenKind) -> None:
        """Append tokens that the environment wrote."""
        count = len(ids)
        self.ids.extend(ids)
        self.mask.extend([False] * count)
        # Fillers that keep the arrays parallel; the mask tells them from sampled values.
        self.logprobs.extend([0.0] * count)
        self.versions.extend([NOT_SAMPLED] * count)
        self.kinds.extend([int(kind)] * count)

    def append_sampled(
        self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int], kinds: Sequence[int]
    ) -> None:
        """Append tokens that the policy sampled.

        Raises:
            ValueError: the four sequences differ in length.
        """
        if not len(ids) == len(logprobs) == len(versions) == len(kinds):
            raise ValueError(
                f"token arrays differ in length: ids {len(ids)}, logprobs {len(logprobs)}, "
                f"versions {len(versions)}, kinds {len(kinds)}"
            )
        self.ids.extend(ids)
        self.mask.extend([True] * len(ids))
        self.logprobs.extend(logprobs)
        self.versions.extend(versions)
        self.kinds.extend(kinds)


@dataclass(frozen=True, slots=True)
class InformationBlock:
    """The documents shown at once, and the searcher's selection from them.

    ``selection`` holds 1-based positions, in the order the searcher wrote them; None until a selection was made.
    The block of the initial documents has the question's retrieval query as ``query``. ``cut`` holds the 1-based
    positions of the documents whose text was too long and was shown only in part.
    """

    query: str
    results: tuple[SearchResult, ...]
    selection: tuple[int, ...] | None = None
    cut: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation of the policy and its meaning.

    ``action`` is search, finish, answer, invalid, truncated, or the name of a protocol's further action.
    """

    text: str
    action: str
    queries: tuple[str, ...] = ()
    well_formed: bool = True
    finish_reason: str = "stop"
    generate_seconds: float = 0.0
    search_seconds: float = 0.0


# Not frozen, unlike the records in it: the search loop appends to it while the rollout runs.
@dataclass(slots=True)
class Trajectory:
    """A question's turns, documents and tokens.

    Attributes:
        documents: the passages that reach the generator, in order.
        answer: the policy's own answer if its protocol has one (Search-R1); None otherwise.
        stop_reason: why the loop ended, a ``StopReason`` value.
        well_formed: no turn broke the protocol.
    """

    question_id: str
    tokens: TokenRecord = field(default_factory=TokenRecord)
    turns: list[Turn] = field(default_factory=list)
    blocks: list[InformationBlock] = field(default_factory=list)
    documents: tuple[Passage, ...] = ()
    answer: str | None = None
    stop_reason: str = ""
    well_formed: bool = True

    @property
    def searches(self) -> int:
        """Number of queries that reached the retriever, initial documents not counted."""
        return sum(len(turn.queries) for turn in self.turns if turn.action == "search")


@dataclass(frozen=True, slots=True)
class Reward:
    """The rollout was scored.

    Attributes:
        parts: each reward that went into ``value``, by name.
        turns: process rewards that are not in ``value``, one per turn; None for a turn without one. Empty: none.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyFailure:
    """The policy broke the rules; its reward is as in ``Reward``, and the rollout counts in the statistics."""

    value: float
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class InfraFailure:
    """A dependency failed. There is no reward, and the rollout is excluded from every statistic."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unscorable:
    """A service rejected the question or its rollout, and would reject it again. There is no reward either."""

    reason: str


Outcome = Reward | PolicyFailure | InfraFailure | Unscorable
NO_REWARD = (InfraFailure, Unscorable)
