"""How a searcher is run: the settings that belong to its weights and travel with them as ``searcher.json``."""

import json
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Literal, get_args

from searchrl.agent.json_fields import checked_fields, require_at_least, require_known
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
    """How one searcher is prompted, sampled and limited; training and serving read the same file, so they agree.

    Attributes:
        protocol: "s3" or "search_r1".
        mode: "strict" for this project's rules, "legacy" for those of published checkpoints.
        template: prompt with ``{question}`` and ``{documents}``; None for the protocol's own.
        limits: budgets of one rollout.
        temperature: what the searcher was trained at; 0 is greedy.
        top_p: likewise.
        initial_top_k: passages found with the question itself and shown in the prompt; 0 for none.
        chat_template_kwargs: variables of the chat template, e.g. ``{"enable_thinking": false}``.
        template_date: the date (YYYY-MM-DD) for chat templates that print today's; prompts would change otherwise.
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
        """Passages that the searcher is shown first: those found with the question, or those of one search."""
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
        """Return how this searcher samples; ``temperature`` overrides the profile's."""
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
        values = checked_fields(values, cls, PROFILE_FILE)
        limits = Limits(**checked_fields(values.pop("limits", {}), Limits, f"limits in {PROFILE_FILE}"))
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
    """How s3's published searchers were run ("8-3-3"): ``max_turns`` 3 there means 4 searches and 5 generations."""
    limits = Limits(
        max_searches=max_turns + 1,
        top_k=top_k,
        max_turn_tokens=500,
        max_observation_tokens=1400,
        max_context_tokens=8000,
    )
    return SearcherProfile("s3", "legacy", template, limits, temperature=0.6, top_p=0.95, initial_top_k=3)


def published_search_r1_profile(template: str | None = None, max_turns: int = 4) -> SearcherProfile:
    """How Search-R1's published models were run: ``max_turns`` searches and one generation more."""
    limits = Limits(
        max_searches=max_turns, top_k=3, max_turn_tokens=500, max_observation_tokens=500, max_context_tokens=4096
    )
    return SearcherProfile("search_r1", "legacy", template, limits, temperature=1.0, top_p=1.0, initial_top_k=0)
