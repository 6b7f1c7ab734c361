"""Defines what the search loop needs from outside: a policy, a tokenizer and a searcher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from searchrl.domain.passage import SearchResult


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
    """Converts text to token ids and back."""

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
