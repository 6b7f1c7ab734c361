"""Defines how a searcher is run: the settings that belong to its weights and are stored beside them."""

import json
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Literal, get_args

from searchrl.agent.json_fields import check_fields, require_at_least, require_known
from searchrl.agent.limits import Limits
from searchrl.agent.ports import Sampling
from searchrl.agent.protocol import SearchProtocol
from searchrl.agent.protocols.s3_protocol import S3Protocol
from searchrl.agent.protocols.search_r1_protocol import SearchR1Protocol
from searchrl.errors import ConfigurationError

PROFILE_FILE = "searcher.json"

Mode = Literal["strict", "legacy"]


@dataclass(frozen=True, slots=True)
class SearcherProfile:
    """Prompt, sampling and limits of one searcher (``searcher.json``), read alike by training and serving.

    Attributes:
        protocol: "s3" or "search_r1".
        mode: "strict" for this project's rules, "legacy" for those of published checkpoints.
        template: prompt with ``{question}`` and ``{documents}``; None for the protocol's own.
        limits: budgets of one rollout.
        temperature: sampling temperature of the training; 0 is greedy.
        top_p: nucleus sampling threshold of the training; 1 disables it.
        initial_top_k: passages found with the question itself and shown in the prompt; 0 for none.
        chat_template_kwargs: variables of the chat template, e.g. ``{"enable_thinking": false}``.
        template_date: the date (YYYY-MM-DD) for chat templates that print today's date; without it the prompts of such
            a model change every day.
    """

    protocol: str = "s3"
    mode: Mode = "strict"
    template: str | None = None
    limits: Limits = field(default_factory=Limits)
    temperature: float = 1.0
    top_p: float = 1.0
    initial_top_k: int = 3
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    template_date: str | None = None

    @property
    def first_top_k(self) -> int:
        """Number of passages that the searcher is shown first: ``initial_top_k``, or that of one search if it is 0."""
        return self.initial_top_k or self.limits.top_k

    def build_protocol(self) -> SearchProtocol:
        """Return the protocol object.

        Raises:
            ConfigurationError: there is no protocol or mode of that name.
        """
        require_known("mode", self.mode, get_args(Mode))
        _require_date(self.template_date)
        require_known("search protocol", self.protocol, ("s3", "search_r1"))
        if self.protocol == "search_r1":
            return SearchR1Protocol(self.template, self.mode)
        return S3Protocol(self.template, self.mode, self.limits.max_selected)

    def sampling(self, seed: int | None = None, temperature: float | None = None) -> Sampling:
        """Return the sampling parameters of this searcher; ``temperature`` overrides the profile's."""
        return Sampling(
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p,
            max_tokens=self.limits.max_turn_tokens,
            seed=seed,
        )

    def to_json(self) -> str:
        """Return the text of ``searcher.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SearcherProfile":
        """Read ``searcher.json``; absent fields have their defaults.

        Raises:
            ConfigurationError: not a JSON object, an unknown field, or an unknown protocol or mode.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"{PROFILE_FILE} is not JSON: {error}") from error
        values = check_fields(values, cls, PROFILE_FILE)
        limits = Limits(**check_fields(values.pop("limits", {}), Limits, f"limits in {PROFILE_FILE}"))
        for name, value in asdict(limits).items():
            require_at_least(name, value, 0 if name in {"max_searches", "max_selected", "seconds"} else 1)
        profile = cls(**values, limits=limits)
        profile.build_protocol()
        return profile


def _require_date(text: str | None) -> None:
    try:
        if text is not None:
            date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{PROFILE_FILE}: template_date must be YYYY-MM-DD, found {text!r}") from error


def published_s3_profile(template: str | None = None, max_turns: int = 3, top_k: int = 8) -> SearcherProfile:
    """Return the profile of s3's published searchers ("8-3-3": 8 documents, at most 3 selected, 3 turns).

    ``max_turns`` 3 in s3's scripts means 4 searches and 5 generations: its trainer adds one search, and the loop is
    followed by one generation without a search.
    """
    # The token budgets are s3's max_response_length, max_obs_length and max_prompt_length.
    limits = Limits(
        max_searches=max_turns + 1,
        top_k=top_k,
        max_turn_tokens=500,
        max_observation_tokens=1400,
        max_context_tokens=8000,
    )
    return SearcherProfile("s3", "legacy", template, limits, temperature=0.6, top_p=0.95, initial_top_k=3)


def published_search_r1_profile(template: str | None = None, max_turns: int = 4) -> SearcherProfile:
    """Return the profile of Search-R1's published models: ``max_turns`` searches and one more generation."""
    # The token budgets are Search-R1's max_response_length, max_obs_length and max_prompt_length.
    limits = Limits(
        max_searches=max_turns, top_k=3, max_turn_tokens=500, max_observation_tokens=500, max_context_tokens=4096
    )
    return SearcherProfile("search_r1", "legacy", template, limits, temperature=1.0, top_p=1.0, initial_top_k=0)
